"""D-PSGD (Lian et al. 2017, "Can Decentralized Algorithms Outperform Centralized Algorithms?", Algorithm 1).

In step k rank i computes its update at x_i while it swaps models with its partner j of this step. Then

    x_i <- (x_i + x_j) / 2 + update(x_i)

Partners are i and i XOR 2^k, for k = 0, 1, ... and again from 0: a symmetric pairwise exponential graph. Its mixing
matrices are symmetric and doubly stochastic, and over a power of two of ranks the average is exact after log2 n steps.
Both partners wait for each other: that is what push-sum on a directed graph does without.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from .vectors import as_vector, mean, wait


def partner(rank: int, size: int, step: int) -> int | None:
    """Return with whom a rank swaps, or None: where the number of ranks is no power of two, some sit out.

    >>> [partner(rank, 4, 0) for rank in range(4)], [partner(rank, 4, 1) for rank in range(4)]
    ([1, 0, 3, 2], [2, 3, 0, 1])
    """
    bits = (size - 1).bit_length()
    other = rank ^ (1 << step % bits) if bits else size
    return other if other < size else None


class DPSGD:
    """Trains a model together with all other ranks.

    Args:
        optimizer: of the model; it computes the update, with momentum and weight decay of this rank alone.
        model: parameters of float32. All ranks begin with those of rank 0.
        comm: the ranks (default: all).

    Attributes:
        x: the parameters as one vector.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, comm: MPI.Comm | None = None) -> None:
        self.optimizer = optimizer
        self.comm = (comm or MPI.COMM_WORLD).Dup()
        self.x = as_vector(model)
        self.comm.Bcast(self.x)
        self._steps = 0
        self._sent, self._received = np.empty_like(self.x), np.empty_like(self.x)
        self._thread = ThreadPoolExecutor(1)
        self._begin()

    def _begin(self) -> None:
        self._sent[:] = self.x
        self._received[:] = self.x  # stays so where nobody is there to swap with
        self._swap = self._thread.submit(self._exchange, partner(self.comm.rank, self.comm.size, self._steps))

    def _exchange(self, other: int | None) -> None:
        if other is not None:
            wait(self.comm.Irecv(self._received, other), self.comm.Isend(self._sent, other))

    def step(self) -> None:
        self.optimizer.step()
        self._swap.result()
        self.x += 0.5 * (self._received - self._sent)
        self._steps += 1
        self._begin()

    def average(self) -> np.ndarray:
        """Collective. Return the mean of all ranks' parameters."""
        return mean(self.x, self.comm)

    def close(self) -> None:
        """Collective. End the swap that is under way."""
        self._swap.result()
        self._thread.shutdown()
        self.comm.Free()
