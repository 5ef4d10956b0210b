"""Digits in a plain PyTorch loop; rank 0's checkpoint, and going on from it.

pushsum run -np 4 examples/frameworks/plain_loop.py
pushsum run -np 4 examples/frameworks/plain_loop.py --epochs 20 --resume out/last.pt
"""

import argparse
from pathlib import Path

import torch
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

    train, test = datasets()
    sampler = DistributedSampler(train, num_replicas=ps.size(), rank=ps.rank(), drop_last=True)
    loader = DataLoader(train, batch_size=16, sampler=sampler)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = ps.PushSumOptimizer(optimizer, model, staleness=1)
    start = 0
    if arguments.resume:  # on every rank
        saved = torch.load(arguments.resume)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["epoch"] + 1

    for epoch in range(start, arguments.epochs):
        sampler.set_epoch(epoch)
        for batch, (images, labels) in enumerate(loader, 1):
            (nn.functional.cross_entropy(model(images), labels) / arguments.accumulate).backward()
            if batch % arguments.accumulate == 0 or batch == len(loader):
                optimizer.step()
                optimizer.zero_grad()
        with optimizer.averaged():  # every rank enters: the model holds the average of all ranks
            if ps.rank() == 0:
                images, labels = test.tensors
                accuracy = (model(images).argmax(1) == labels).float().mean().item()
                print(f"epoch {epoch + 1}: test accuracy {accuracy:.1%}")
        average = optimizer.averaged_state_dict()  # on every rank; rank 0 gets it
        if ps.rank() == 0:
            arguments.out.mkdir(exist_ok=True)
            state = {"model": average, "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, arguments.out / "last.pt")
    optimizer.close()


if __name__ == "__main__":
    main()
