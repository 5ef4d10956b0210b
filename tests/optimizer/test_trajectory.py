"""Wrapped optimizers follow Algorithm 1, written down with numerators, dense matrices and bare optimizers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optimizer.common import FIRST_ORDER, KINDS, batch, network, ring, star, values

import pushsum_opt as ps

ROUNDS = 8


def matrix(graph, size, round):
    """Column i says where rank i's mass goes: equal parts to itself and its out-peers."""
    p = np.zeros((size, size))
    for i in range(size):
        receivers = (i, *graph(i, size, round))
        p[list(receivers), i] = 1 / len(receivers)
    return torch.from_numpy(p)


def gradients(model, step, rank):
    inputs, targets = batch(step, rank)
    model.zero_grad()
    (model(inputs.double()) - targets.double()).square().mean().backward()


def algorithm_1(kind, graph, data_weights):
    """The update is applied to the numerator: x <- x + a dz, where the bare optimizer at z would move by dz."""
    size = len(data_weights)
    a = torch.tensor(data_weights, dtype=torch.float64) * size / sum(data_weights)
    models = [network().double() for _ in range(size)]
    bare = [KINDS[kind](model.parameters()) for model in models]
    w = a.clone()
    x = [[w[i] * value for value in values(model)] for i, model in enumerate(models)]
    for k in range(ROUNDS):
        for i, model in enumerate(models):
            before = values(model)
            gradients(model, k, i)
            bare[i].step()
            moved = [after - old for after, old in zip(values(model), before, strict=True)]
            x[i] = [numerator + a[i] * dz for numerator, dz in zip(x[i], moved, strict=True)]
        p = matrix(graph, size, k)
        w = p @ w
        x = [[sum(p[i, j] * x[j][q] for j in range(size)) for q in range(len(x[0]))] for i in range(size)]
        for i, model in enumerate(models):
            for parameter, numerator in zip(model.parameters(), x[i], strict=True):
                parameter.data.copy_(numerator / w[i])
    return [values(model) for model in models], w.tolist()


@pytest.mark.parametrize("kind", FIRST_ORDER)
@pytest.mark.parametrize("graph", [ring, star])
@pytest.mark.parametrize("data_weights", [[1.0] * 4, [1.0, 2.0, 5.0, 0.5]], ids=["equal data", "unequal data"])
def test_every_rank_follows_algorithm_1_to_rounding(kind, graph, data_weights):
    def rank(comm):
        model = network().double()
        options = {"graph": graph, "data_weight": data_weights[comm.rank], "comm": comm}
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, **options) as wrapped:
            for k in range(ROUNDS):
                gradients(model, k, comm.rank)
                wrapped.step()
            return values(model), wrapped.push_weight

    expected, weights = algorithm_1(kind, graph, data_weights)
    for r, (found, weight) in enumerate(ps.testing.run(4, rank)):
        assert weight == pytest.approx(weights[r], rel=1e-13)
        torch.testing.assert_close(found, expected[r], rtol=1e-10, atol=1e-12)
