"""Digits with Hugging Face Accelerate, started by its own launcher; or by torchrun.

accelerate launch --cpu --num-processes 4 examples/frameworks/accelerate_launch.py
"""

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
    arguments = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=arguments.accumulate)
    assert accelerator.num_processes == ps.size()
    train, test = datasets()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(accelerator.device)
    push_sum = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, staleness=1)
    # Not for evaluation: it only keeps DistributedDataParallel away, which would average all gradients.
    model = accelerator.prepare_model(model, evaluation_mode=True)
    # Accelerate gives each rank its part of the data.
    optimizer, loader = accelerator.prepare(push_sum, DataLoader(train, batch_size=16, shuffle=True, drop_last=True))

    for epoch in range(arguments.epochs):
        for images, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(images), labels))
                optimizer.step()
                optimizer.zero_grad()
        with push_sum.averaged():  # every rank enters: the model holds the average of all ranks
            if accelerator.is_main_process:
                images, labels = (tensor.to(accelerator.device) for tensor in test.tensors)
                accuracy = (model(images).argmax(1) == labels).float().mean().item()
                print(f"epoch {epoch + 1}: test accuracy {accuracy:.1%}")
    push_sum.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
