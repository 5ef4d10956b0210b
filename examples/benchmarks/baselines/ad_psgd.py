"""AD-PSGD (Lian et al. 2018, "Asynchronous Decentralized Parallel Stochastic Gradient Descent", Algorithm 1).

A thread averages models with random peers while the rank computes at a copy of its model:

    x_i, x_j <- (x_i + x_j) / 2, both    at any time
    x_i <- x_i + update(copy)            when the update is computed; then the copy is made anew

Even ranks ask, odd ranks answer, so that no two wait for each other (the paper's bipartite graph). A rank that asks
does so once per step, or less often if the last answer has not come. Each rank thus sends about one model per step,
as the other contenders do.

The averages are atomic. The rank that answers reads its model and moves it by half the difference under a lock; the one
that asked moves by the opposite of it. Updates that come between are added to the result, as if they had come after it.
"""

from __future__ import annotations

import contextlib
import queue
import threading

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from .vectors import as_vector, mean, wait, wait_for_message

QUESTION, ANSWER = 1, 2


class ADPSGD:
    """Trains a model together with all other ranks, and waits for none of them.

    Args:
        optimizer: of the model; it computes the update, with momentum and weight decay of this rank alone.
        model: parameters of float32. All ranks begin with those of rank 0.
        comm: the ranks (default: all).
        seed: of the choice of peers.

    Attributes:
        x: the parameters that are averaged, as one vector. The model has the copy that was made at the last step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, comm: MPI.Comm | None = None, seed: int = 0
    ) -> None:
        self.optimizer = optimizer
        self.comm = (comm or MPI.COMM_WORLD).Dup()
        self._copy = as_vector(model)
        self.comm.Bcast(self._copy)
        self.x = self._copy.copy()
        self._lock = threading.Lock()
        self._random = np.random.default_rng([seed, self.comm.rank])
        self._wanted: queue.Queue[bool] = queue.Queue(1)
        self.averages = 0  # that this rank took part in
        self._asks = self.comm.rank % 2 == 0
        self._thread = threading.Thread(target=self._ask if self._asks else self._answer, daemon=True)
        self._thread.start()

    def step(self) -> None:
        before = self._copy.copy()
        self.optimizer.step()
        with self._lock:
            self.x += self._copy - before
            self._copy[:] = self.x
        if self._asks and self.comm.size > 1:
            with contextlib.suppress(queue.Full):
                self._wanted.put_nowait(True)

    def _ask(self) -> None:
        others = range(1, self.comm.size, 2)
        theirs = np.empty_like(self.x)
        while self._wanted.get():
            with self._lock:
                mine = self.x.copy()
            other = int(self._random.choice(others))
            wait(self.comm.Irecv(theirs, other, ANSWER), self.comm.Isend(mine, other, QUESTION))
            with self._lock:
                self.x += 0.5 * (theirs - mine)
            self.averages += 1
            self._wanted.task_done()
        for other in others:
            wait(self.comm.Isend(self.x[:0], other, QUESTION))  # no question: this rank has no more

    def _answer(self) -> None:
        askers = (self.comm.size + 1) // 2
        theirs, status = np.empty_like(self.x), MPI.Status()
        while askers:
            wait_for_message(self.comm, QUESTION, status)
            count = status.Get_count(MPI.FLOAT)
            wait(self.comm.Irecv(theirs[:count], status.source, QUESTION))
            if not count:
                askers -= 1
                continue
            with self._lock:
                mine = self.x.copy()
                self.x += 0.5 * (theirs - mine)
            wait(self.comm.Isend(mine, status.source, ANSWER))
            self.averages += 1

    def average(self) -> np.ndarray:
        """Collective. Return the mean of all ranks' parameters, at a moment at which no two ranks are at it."""
        self._wanted.join()
        wait(self.comm.Ibarrier())
        return mean(self.x, self.comm)

    def close(self) -> None:
        """Collective: ranks that answer do so until all that ask have come here."""
        if self._asks:
            self._wanted.put(False)
        self._thread.join()
        self.comm.Free()
