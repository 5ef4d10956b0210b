"""Digits with Ray Train, which starts the ranks itself, also on several hosts.

python examples/frameworks/ray_train.py
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pushsum_opt as ps


def datasets() -> tuple[TensorDataset, TensorDataset]:
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    test = torch.arange(len(labels)) % 5 == 0
    return TensorDataset(images[~test], labels[~test]), TensorDataset(images[test], labels[test])


def train(config: dict[str, Any]) -> None:
    """What each worker runs."""
    training, test = datasets()
    # Ray gives each rank its part of the data. No prepare_model: it would average all gradients.
    loader = prepare_data_loader(DataLoader(training, batch_size=16, shuffle=True, drop_last=True))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = ps.PushSumOptimizer(optimizer, model, staleness=1)
    saver = ps.checkpoint.Saver(Path(config["out"]) / "checkpoints", optimizer)
    begin = (saver.resume() or {"epoch": 0})["epoch"]  # more than 0 where Ray has started the ranks again
    for epoch in range(begin, config["epochs"]):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        saver.save(epoch=epoch + 1)
        with optimizer.averaged():  # every rank enters: the model holds the average of all ranks
            if ps.rank() == 0:
                images, labels = test.tensors
                accuracy = (model(images).argmax(1) == labels).float().mean().item()
                print(f"epoch {epoch + 1}: test accuracy {accuracy:.1%}", flush=True)
    optimizer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out"), help="a folder that all hosts share")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    TorchTrainer(
        train,
        train_loop_config={"epochs": arguments.epochs, "out": str(out)},
        scaling_config=ScalingConfig(num_workers=arguments.workers),
        run_config=RunConfig(storage_path=str(out / "ray"), failure_config=FailureConfig(max_failures=3)),
    ).fit()


if __name__ == "__main__":
    main()
