"""Shared by the tests of training loops: what people do in a loop, on a wrapped optimizer and on bare ones beside it.

A recipe takes a model and returns (optimizer, step). ``step(optimizer, k, rank)`` does what a script does in step k; it
is given the optimizer, so that the same words run on the wrapped one and on the bare one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from optimizer.common import batch, network
from support.oracle import Matrix, Trajectory, irregular_column_stochastic, overlapped_push, stochastic_gradient_push
from support.problems import Irregular
from torch import nn

import pushsum_opt as ps

BOUNDED = [0, 1, 2]
MODES = [*BOUNDED, "unbounded"]
SIZE, ROUNDS = 4, 8
DATA_WEIGHTS = np.array([1.0, 2.0, 0.5, 1.5])
A = SIZE * DATA_WEIGHTS / DATA_WEIGHTS.sum()

Step = Callable[[torch.optim.Optimizer, int, int], object]
Recipe = Callable[[nn.Module], tuple[torch.optim.Optimizer, Step]]


def loss_of(model: nn.Module, k: int, rank: int) -> torch.Tensor:
    like = next(model.parameters())
    inputs, targets = (tensor.to(like.dtype) for tensor in batch(k, rank))
    return (model(inputs) - targets).square().mean()


def vector(model: nn.Module) -> Matrix:
    return torch.cat([p.detach().reshape(-1).double() for p in model.parameters()]).numpy()


def fill(model: nn.Module, values: Matrix) -> None:
    """Set the parameters, in place, from one vector."""
    parts = torch.from_numpy(values).split([p.numel() for p in model.parameters()])
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), parts, strict=True):
            parameter.copy_(part.reshape(parameter.shape))


def expected(recipe: Recipe, staleness: int, dtype: torch.dtype = torch.float64) -> Trajectory:
    """Return the oracle's trajectory; a bare optimizer per rank says by how much it would move z."""
    models = [network().to(dtype) for _ in range(SIZE)]
    made = [recipe(model) for model in models]

    def descent(rank: int, k: int, z: Matrix) -> Matrix:
        fill(models[rank], z)
        optimizer, step = made[rank]
        step(optimizer, k, rank)
        return z - vector(models[rank])

    z0 = np.stack([vector(model) for model in models])
    problem = z0, DATA_WEIGHTS, lambda k: irregular_column_stochastic(SIZE, k, 3)[1], descent, 1.0, ROUNDS
    return stochastic_gradient_push(*problem) if staleness == 0 else overlapped_push(*problem, staleness)


@dataclass
class Run:
    """What one rank saw."""

    path: Matrix  # (ROUNDS + 1, d): z at the start and after every step
    moved: Matrix  # (ROUNDS, d): by how much a bare optimizer moved the same z in each step
    numerator: Matrix  # w z after close()
    push_weight: float  # w after close()


def train(
    recipe: Recipe, staleness: int | str, dtype: torch.dtype = torch.float64, seed: int | None = None
) -> list[Run]:
    """Run a recipe on wrapped optimizers, with irregular gossip and unequal data weights."""

    def rank(comm) -> Run:
        model, twin = network().to(dtype), network().to(dtype)
        optimizer, step = recipe(model)
        bare, bare_step = recipe(twin)
        path, moved = [vector(model)], []
        options = {"graph": Irregular(3), "data_weight": DATA_WEIGHTS[comm.rank], "comm": comm}
        with ps.PushSumOptimizer(optimizer, model, staleness=staleness, **options) as wrapped:
            for k in range(ROUNDS):
                fill(twin, path[-1])
                bare_step(bare, k, comm.rank)
                moved.append(vector(twin) - path[-1])
                step(wrapped, k, comm.rank)
                path.append(vector(model))
        return Run(np.stack(path), np.stack(moved), wrapped.push_weight * vector(model), wrapped.push_weight)

    return ps.testing.run(SIZE, rank, seed=seed)


one_at_a_time = threading.Lock()
"""The ranks of a test are threads, and dynamo is not made for several threads at once."""
