"""A model as one vector, and a wait that leaves the processor to others: what the baselines have in common."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

LONGEST_NAP = 1e-3  # seconds


def as_vector(model: nn.Module) -> np.ndarray:
    """Lay the parameters one behind the other, and return the vector that they now are views of.

    Raises:
        ValueError: parameters of another type than float32.
    """
    parameters = list(model.parameters())
    if {p.dtype for p in parameters} != {torch.float32}:
        raise ValueError(f"expected parameters of float32, got {sorted({str(p.dtype) for p in parameters})}")
    vector = torch.cat([p.detach().reshape(-1) for p in parameters])
    parts = vector.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    return vector.numpy()


def wait(*requests: MPI.Request) -> None:
    """Wait for requests of MPI, which moves bytes only while somebody asks, without taking a core for it."""
    _until(lambda: MPI.Request.Testall(requests))


def wait_for_message(comm: MPI.Comm, tag: int, status: MPI.Status) -> None:
    """Wait until somebody has sent a message of this tag, and say in ``status`` who and how much."""
    _until(lambda: comm.Iprobe(MPI.ANY_SOURCE, tag, status))


def _until(done: Callable[[], bool]) -> None:
    nap = 5e-5
    while not done():
        time.sleep(nap)
        nap = min(LONGEST_NAP, 1.5 * nap)


def mean(vector: np.ndarray, comm: MPI.Comm) -> np.ndarray:
    """Collective. Return the mean over ranks."""
    total = vector.copy()
    wait(comm.Iallreduce(MPI.IN_PLACE, total))
    total /= comm.size
    return total
