"""Local SGD: every rank trains alone, and every few steps the ranks replace their models by the average of all.

McMahan et al. 2017 average so over devices; Stich 2019 ("Local SGD Converges Fast and Communicates Little") says when
it is as good as averages after every step. State of the optimizer, such as momentum, stays with the rank.
"""

from __future__ import annotations

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from .vectors import as_vector, mean


class LocalSGD:
    """Trains a model together with all other ranks.

    Args:
        optimizer: of the model, of any kind.
        model: parameters of float32. All ranks begin with those of rank 0.
        every: steps between two averages.
        comm: the ranks (default: all).

    Attributes:
        x: the parameters as one vector.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, every: int = 8, comm: MPI.Comm | None = None
    ) -> None:
        self.optimizer, self.every = optimizer, every
        self.comm = (comm or MPI.COMM_WORLD).Dup()
        self.x = as_vector(model)
        self.comm.Bcast(self.x)
        self._steps = 0

    def step(self) -> None:
        self.optimizer.step()
        self._steps += 1
        if self._steps % self.every == 0:
            self.x[:] = self.average()

    def average(self) -> np.ndarray:
        """Collective. Return the mean of all ranks' parameters."""
        return mean(self.x, self.comm)

    def close(self) -> None:
        """Collective."""
        self.comm.Free()
