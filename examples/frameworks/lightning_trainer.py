"""Digits with the Lightning Trainer; every rank is a run of one process to it.

pushsum run -np 4 examples/frameworks/lightning_trainer.py
"""

import argparse

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import pushsum_opt as ps


class Digits(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, index):
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch, index):
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def on_validation_start(self):  # every rank: validation and its checkpoints see the average of all ranks
        self.average = self.optimizers().averaged()
        self.average.__enter__()

    def on_validation_end(self):
        self.average.__exit__(None, None, None)

    def configure_optimizers(self):
        return ps.PushSumOptimizer(torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9), self, staleness=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--accumulate", type=int, default=1, help="batches per step")
    parser.add_argument("--out", default="out")
    parser.add_argument("--resume")
    arguments = parser.parse_args()

    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    test = torch.arange(len(labels)) % 5 == 0
    train = TensorDataset(images[~test], labels[~test])
    sampler = DistributedSampler(train, num_replicas=ps.size(), rank=ps.rank(), drop_last=True)

    first = ps.rank() == 0  # the only one that writes
    environment = LightningEnvironment()  # otherwise Lightning finds MPI or Slurm, and takes the ranks for its own
    environment.set_global_rank(ps.rank())  # "rank zero only" messages come from rank 0
    trainer = L.Trainer(
        accelerator="cpu", devices=1, plugins=[environment], max_epochs=arguments.epochs,
        accumulate_grad_batches=arguments.accumulate,
        logger=CSVLogger(arguments.out) if first else False, enable_progress_bar=first, enable_model_summary=first,
        callbacks=[ModelCheckpoint(arguments.out, "last", save_on_train_epoch_end=False)] if first else [],
        enable_checkpointing=first,
    )  # fmt: skip
    trainer.fit(
        Digits(),
        DataLoader(train, batch_size=16, sampler=sampler),
        DataLoader(TensorDataset(images[test], labels[test]), batch_size=360),
        ckpt_path=arguments.resume,  # on every rank
    )
    if first:
        print(f"test accuracy {trainer.callback_metrics['accuracy']:.1%}")
    trainer.optimizers[0].close()


if __name__ == "__main__":
    main()
