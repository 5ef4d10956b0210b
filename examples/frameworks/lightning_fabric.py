"""Digits with Lightning Fabric; every rank is a run of one process to it.

pushsum run -np 4 examples/frameworks/lightning_fabric.py
"""

import argparse

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
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
    parser.add_argument("--out", default="out")
    parser.add_argument("--resume")
    arguments = parser.parse_args()

    environment = LightningEnvironment()  # otherwise Lightning finds MPI or Slurm, and takes the ranks for its own
    environment.set_global_rank(ps.rank())  # "rank zero only" messages come from rank 0
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[environment])

    train, test = datasets()
    sampler = DistributedSampler(train, num_replicas=ps.size(), rank=ps.rank(), drop_last=True)
    loader = DataLoader(train, batch_size=16, sampler=sampler)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(fabric.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = ps.PushSumOptimizer(optimizer, model, staleness=1)
    model, optimizer = fabric.setup(model, optimizer)
    state = {"model": model, "optimizer": optimizer, "epoch": -1}
    if arguments.resume:  # on every rank
        fabric.load(arguments.resume, state)

    for epoch in range(state["epoch"] + 1, arguments.epochs):
        sampler.set_epoch(epoch)  # fabric.setup_dataloaders would count epochs from 0 again after resuming
        for batch, data in enumerate(loader, 1):
            images, labels = fabric.to_device(data)
            fabric.backward(nn.functional.cross_entropy(model(images), labels) / arguments.accumulate)
            if batch % arguments.accumulate == 0 or batch == len(loader):
                optimizer.step()
                optimizer.zero_grad()
        with optimizer.averaged():  # every rank enters: the model holds the average of all ranks
            if ps.rank() == 0:
                images, labels = fabric.to_device(test.tensors)
                accuracy = (model(images).argmax(1) == labels).float().mean().item()
                print(f"epoch {epoch + 1}: test accuracy {accuracy:.1%}")
                fabric.save(f"{arguments.out}/last.ckpt", {**state, "epoch": epoch})
    optimizer.close()


if __name__ == "__main__":
    main()
