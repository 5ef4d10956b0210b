"""Averages over time of a model that gossips: of each rank's own parameters, and of the exact average over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optimizer.common import bits, network, values
from optimizer.training_loops import (
    BOUNDED,
    DATA_WEIGHTS,
    MODES,
    ROUNDS,
    SIZE,
    A,
    expected,
    fill,
    loss_of,
    train,
    vector,
)
from support.problems import Irregular
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pushsum_opt as ps

DECAY = 0.8


def descend(model, optimizer, k, rank):
    optimizer.zero_grad()
    loss_of(model, k, rank).backward()
    optimizer.step()


def plain(model):
    step = lambda optimizer, k, rank: descend(model, optimizer, k, rank)  # noqa: E731
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), step


def exponential_mean(path):
    """The first value counts in full, as AveragedModel has it."""
    mean = path[0]
    for z in path[1:]:
        mean = DECAY * mean + (1 - DECAY) * z
    return mean


def ema_of(model) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))


# ---------------------------------------------------------------------- of each rank's own parameters


def with_ema(found):
    def recipe(model):
        ema = ema_of(model)
        optimizer, plain_step = plain(model)

        def step(optimizer, k, rank):
            plain_step(optimizer, k, rank)
            ema.update_parameters(model)
            if isinstance(optimizer, ps.PushSumOptimizer):
                found[rank] = vector(ema.module)

        return optimizer, step

    return recipe


@pytest.mark.parametrize("staleness", MODES)
def test_an_average_over_time_is_of_the_debiased_parameters(staleness):
    found = {}
    runs = train(with_ema(found), staleness, seed=5)
    for rank, run in enumerate(runs):
        np.testing.assert_allclose(found[rank], exponential_mean(run.path[1:]), rtol=0, atol=1e-12)
        assert np.abs(found[rank] - run.path[-1]).max() > 1e-3, "the average lags behind"


@pytest.mark.parametrize("staleness", BOUNDED)
def test_an_average_over_time_is_that_of_the_papers_algorithm(staleness):
    found = {}
    train(with_ema(found), staleness, seed=6)
    oracle = expected(plain, staleness)
    for rank in range(SIZE):
        np.testing.assert_allclose(found[rank], exponential_mean(oracle.z[1:, rank]), rtol=0, atol=1e-9)


# ---------------------------------------------------------------------- of the exact average over ranks


def averaging(comm, staleness, averages=True):
    """Every second step, take the exact average over ranks into an average over time."""
    model, twin = network().double(), network().double()
    ema = ema_of(model)
    bare, moved, path = plain(twin)[0], [], []
    options = {"graph": Irregular(3), "data_weight": DATA_WEIGHTS[comm.rank], "comm": comm}
    with ps.PushSumOptimizer(plain(model)[0], model, staleness=staleness, **options) as optimizer:
        for k in range(ROUNDS):
            before = vector(model)
            fill(twin, before)
            descend(twin, bare, k, comm.rank)
            moved.append(vector(twin) - before)
            descend(model, optimizer, k, comm.rank)
            if averages and k % 2 == 1:
                with optimizer.averaged():
                    ema.update_parameters(model)
            path.append(b"".join(bits(values(model))))
    return vector(ema.module), np.stack(moved), path


@pytest.mark.parametrize("staleness", MODES)
def test_an_average_over_time_of_the_average_over_ranks(staleness):
    results = ps.testing.run(SIZE, lambda comm: averaging(comm, staleness), seed=7)
    moved = sum(a * moves for a, (_, moves, _) in zip(A, results, strict=True)) / SIZE
    means = vector(network().double()) + moved.cumsum(0)
    for found, *_ in results:
        np.testing.assert_allclose(found, exponential_mean(means[1::2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("staleness", BOUNDED)
def test_averaging_over_time_changes_no_bit_of_the_training(staleness):
    runs = [ps.testing.run(SIZE, lambda comm, on=on: averaging(comm, staleness, on)) for on in (True, False)]
    assert [path for *_, path in runs[0]] == [path for *_, path in runs[1]]
