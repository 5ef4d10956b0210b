"""Digits with Lightning's Trainer, which starts the ranks itself: no launcher.

python examples/frameworks/lightning_devices.py
"""

import argparse

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pushsum_opt as ps


class PushSumStrategy(DDPStrategy):
    """Lightning starts, names and ends the ranks; gradients stay on their rank."""

    def configure_ddp(self):
        """Leave the model as it is: DistributedDataParallel would average all gradients."""


class Digits(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, index):
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch, index):
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean(), sync_dist=True)

    def on_validation_start(self):  # every rank: validation and its checkpoints see the average of all ranks
        self.average = self.optimizers().averaged()
        self.average.__enter__()

    def on_validation_end(self):
        self.average.__exit__(None, None, None)

    def configure_optimizers(self):  # the ranks know each other from here on: call nothing of ps.* before
        return ps.PushSumOptimizer(torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9), self, staleness=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--accumulate", type=int, default=1, help="batches per step")
    parser.add_argument("--devices", type=int, default=4)
    arguments = parser.parse_args()

    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    test = torch.arange(len(labels)) % 5 == 0
    trainer = L.Trainer(
        accelerator="cpu", devices=arguments.devices, strategy=PushSumStrategy(), max_epochs=arguments.epochs,
        accumulate_grad_batches=arguments.accumulate, num_sanity_val_steps=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(  # Lightning gives each rank its part of the data
        Digits(),
        DataLoader(TensorDataset(images[~test], labels[~test]), batch_size=16, shuffle=True),
        DataLoader(TensorDataset(images[test], labels[test]), batch_size=90),
    )
    if trainer.is_global_zero:
        print(f"test accuracy {trainer.callback_metrics['accuracy']:.1%}")
    trainer.optimizers[0].close()


if __name__ == "__main__":
    main()
