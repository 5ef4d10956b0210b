"""Shared by the tests of checkpoints: a small run with everything in it that a state must hold."""

from __future__ import annotations

import contextlib

import torch
from optimizer.common import batch, bits, flat, star
from torch import nn

import pushsum_opt as ps

SIZES = (1, 2, 3, 5)
BOUNDED = (0, 1, 2, 3)


class Network(nn.Module):
    """Floating and integer buffers, a channels-last weight, a complex one, and two names for one parameter."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.first = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 2)
        self.convolution = nn.Conv2d(3, 2, (2, 3))
        self.wave = nn.Parameter(torch.zeros(4, dtype=torch.complex64))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3
        self.alias = self.last.weight
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
        self.convolution.to(memory_format=torch.channels_last)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = self.last(torch.tanh(self.norm(self.first(inputs))))
        picture = torch.linspace(-1, 1, 24, dtype=inputs.dtype).reshape(1, 3, 2, 4)
        wave = (self.wave * torch.tensor([1, 1j, -1, 2])).real.sum().to(inputs.dtype)
        return rows + self.convolution(picture).mean() + wave


class Run:
    """One rank's training; step k sees the batch of (k, rank), so that a resumed run sees what it would have seen."""

    def __init__(self, comm, *, dtype=torch.float32, weighted=True, graph=star, kind=None, **options) -> None:
        self.rank = comm.rank
        self.model = Network(dtype)
        inner = (kind or (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5)))(self.model.parameters())
        weight = 1.0 + comm.rank if weighted else 1.0
        self.optimizer = ps.PushSumOptimizer(inner, self.model, graph=graph, data_weight=weight, comm=comm, **options)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.7)
        self.beside = {"scheduler": self.scheduler}

    def steps(self, start: int, stop: int) -> None:
        for k in range(start, stop):
            self.optimizer.zero_grad()
            inputs, targets = (one.to(self.model.first.weight.dtype) for one in batch(k, self.rank))
            (self.model(inputs) - targets).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()

    def everything(self) -> list[object]:
        """Return every bit that the trajectory depends on."""
        states = self.model.state_dict(), self.optimizer.optimizer.state_dict(), self.scheduler.state_dict()
        own = self.optimizer.state_dict()["push_sum"]
        kept = {key: own[key] for key in own if key not in ("run", "in_flight")}
        return flat([states, kept])

    def mean(self) -> list[bytes]:
        """Collective. Return the exact average of the model."""
        with self.optimizer.averaged():
            return flat(self.model.state_dict())

    def close(self) -> None:
        self.optimizer.close()


@contextlib.contextmanager
def running(comm, **options):
    run = Run(comm, **options)
    yield run
    run.close()


def train_and_save(directory, size, *, steps=4, saves=1, **options):
    """Train on ``size`` ranks and save; return the path of the newest checkpoint and every rank's mean model."""

    def rank(comm):
        with running(comm, **options) as run:
            for count in range(saves):
                run.steps(count * steps, (count + 1) * steps)
                path = ps.checkpoint.save(directory, run.optimizer, extra={"rank": comm.rank}, **run.beside)
            with run.optimizer.averaged():
                mean = {key: value.clone() for key, value in run.model.state_dict().items()}
            return path, mean

    results = ps.testing.run(size, rank)
    return results[0]


__all__ = ["BOUNDED", "SIZES", "Network", "Run", "bits", "running", "train_and_save"]
