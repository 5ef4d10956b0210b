"""Digits with Hugging Face Accelerate; every rank is a run of one process to it.

pushsum run -np 4 examples/frameworks/accelerate_loop.py
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pushsum_opt as ps


def datasets() -> tuple[TensorDataset, TensorDataset]:
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    test = torch.arange(len(labels)) % 5 == 0
    return TensorDataset(images[~test], labels[~test]), TensorDataset(images[test], labels[test])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--accumulate", type=int, default=1, help="batches per step")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--resume", type=Path)
    arguments = parser.parse_args()

    accelerator = Accelerator(gradient_accumulation_steps=arguments.accumulate)  # never cpu=True: it would start DDP
    assert accelerator.num_processes == 1, "Accelerate took the ranks for its own"

    train, test = datasets()
    sampler = DistributedSampler(train, num_replicas=ps.size(), rank=ps.rank(), drop_last=True)
    loader = DataLoader(train, batch_size=16, sampler=sampler)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(accelerator.device)
    push_sum = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, staleness=1)
    model, optimizer, loader = accelerator.prepare(model, push_sum, loader)
    start = 0
    if arguments.resume:  # on every rank
        accelerator.load_state(arguments.resume)
        start = int((arguments.resume / "epoch.txt").read_text()) + 1

    for epoch in range(start, arguments.epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(images), labels))
                optimizer.step()
                optimizer.zero_grad()
        with push_sum.averaged():  # every rank enters: the model holds the average of all ranks
            if ps.rank() == 0:
                images, labels = (tensor.to(accelerator.device) for tensor in test.tensors)
                accuracy = (model(images).argmax(1) == labels).float().mean().item()
                print(f"epoch {epoch + 1}: test accuracy {accuracy:.1%}")
                accelerator.save_state(arguments.out)
                (arguments.out / "epoch.txt").write_text(str(epoch))
    push_sum.close()


if __name__ == "__main__":
    main()
