"""Ranks that run out of batches at different times."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.ranks import on_ranks
from support.scenarios import shift

import pushsum_opt as ps
from pushsum_opt.algorithms import PeriodicAverage
from pushsum_opt.errors import CallOrderError, ConfigurationError
from pushsum_opt.testing import RankErrors

MODES = [0, 1, 2, "unbounded"]


def train(comm, lengths, staleness=0, divide=False, **options):
    """Steps of 1 per batch on rank-dependent coordinates: afterwards the mean counts everyone's batches."""
    size = comm.size
    z = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    options = {"graph": shift, "staleness": staleness, "comm": comm, **options}
    with ps.PushSumOptimizer(torch.optim.SGD([z], lr=1.0), **options) as optimizer:
        for epoch in range(2):
            with optimizer.join(divide_by_active=divide):
                for _ in range(lengths[(comm.rank + epoch) % size]):
                    z.grad = -torch.nn.functional.one_hot(torch.tensor(comm.rank), size).double()
                    optimizer.step()
        with optimizer.averaged():
            mean = z.detach().numpy().copy()
        optimizer.drain()
        return mean, optimizer.round, optimizer.push_weight


@pytest.mark.parametrize("staleness", MODES)
@pytest.mark.parametrize("lengths", [[3], [0, 5], [1, 20, 7], [5, 0, 33, 2, 16]])
def test_every_sample_counts_gamma_over_n(lengths, staleness):
    size = len(lengths)
    results = ps.testing.run(size, lambda comm: train(comm, lengths, staleness), seed=1)
    batches = np.array([lengths[i] + lengths[(i + 1) % size] for i in range(size)])
    for mean, _, _ in results:
        np.testing.assert_allclose(mean, batches / size, atol=1e-12)
    assert sum(w for _, _, w in results) == pytest.approx(size, rel=1e-13)
    if staleness != "unbounded":
        assert len({rounds for _, rounds, _ in results}) == 1, "all ranks are in the same round again"


def test_steps_are_divided_by_the_ranks_that_are_active():
    """The scale is n / n_active as last counted: 4 once rank 3 has been alone for 16 rounds, 34 steps of its 60."""
    lengths = [10, 10, 10, 60]
    mean, _, _ = ps.testing.run(4, lambda comm: train(comm, lengths, divide=True))[0]
    plain, _, _ = ps.testing.run(4, lambda comm: train(comm, lengths))[0]
    assert mean[3] - plain[3] >= 34 * (4 - 1) / 4
    assert mean[3] - plain[3] <= 50 * (4 - 1) / 4


def test_data_weights_say_who_is_active():
    """Rank 1 of weight 3 of 4 alone: its steps are scaled by n over its a_i, so the mean moves by a whole step."""

    def rank(comm):
        z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        options = {"data_weight": [1.0, 3.0][comm.rank], "comm": comm}
        with ps.PushSumOptimizer(torch.optim.SGD([z], lr=1.0), **options) as optimizer:
            means = []
            with optimizer.join(divide_by_active=True):
                for _ in range(0 if comm.rank == 0 else 40):
                    z.grad = -torch.ones_like(z)
                    before = optimizer.push_weight
                    at = z.item()
                    optimizer._local_step(None)
                    means.append(before * (z.item() - at) / comm.size)
                    optimizer._gossip_round()
        return means

    moved = ps.testing.run(2, rank)[1]
    assert moved[0] == pytest.approx(0.75)
    assert moved[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{"gossip_every": 3}, {"algorithm": PeriodicAverage}], ids=str)
def test_rounds_match_again_after_the_block(options):
    """With local steps between rounds, or exact averages: later rounds meet, on every rank after as many steps."""

    def rank(comm):
        made = {name: value(5) if name == "algorithm" else value for name, value in options.items()}
        z = torch.zeros(2, requires_grad=True)
        with ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.1), comm=comm, timeout=30.0, **made) as optimizer:
            rounds = []
            for _ in range(3):
                with optimizer.join():
                    for _ in range(4 + 3 * comm.rank):
                        z.grad = torch.ones_like(z)
                        optimizer.step()
                for _ in range(7):
                    z.grad = torch.ones_like(z)
                    optimizer.step()
                rounds.append(optimizer.round)
        return rounds

    first, *others = ps.testing.run(3, rank, timeout=60)
    assert all(rounds == first for rounds in others)


@pytest.mark.parametrize("call", ["averaged", "drain", "consensus_distance", "join"])
@on_ranks(2, timeout=60)
def test_collective_calls_inside_are_refused_with_the_reason(comm, call):
    z = torch.zeros(2, requires_grad=True)
    with ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.1), comm=comm) as optimizer:
        calls = {
            "averaged": lambda: optimizer.averaged().__enter__(),
            "drain": optimizer.drain,
            "consensus_distance": lambda: ps.consensus_distance(optimizer),
            "join": lambda: optimizer.join().__enter__(),
        }
        with optimizer.join():
            for _ in range(3 + comm.rank):
                z.grad = torch.ones_like(z)
                optimizer.step()
            with pytest.raises(CallOrderError, match=rf"{call}\(\) inside join\(\)"):
                calls[call]()
        with optimizer.averaged():
            pass


def test_an_error_inside_leaves_at_once():
    def rank(comm):
        z = torch.zeros(2, requires_grad=True)
        optimizer = ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.1), comm=comm)
        with optimizer.join():
            if comm.rank == 1:
                raise OSError("the disk is gone")
            for _ in range(1000):
                z.grad = torch.ones_like(z)
                optimizer.step()

    with pytest.raises(RankErrors, match="the disk is gone"):
        ps.testing.run(2, rank, timeout=60)


@on_ranks(2)
def test_what_cannot_be_done_is_refused(comm):
    z = torch.zeros(2, requires_grad=True)
    optimizer = ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.1), staleness="unbounded", comm=comm)
    with pytest.raises(ConfigurationError, match="no round in common"):
        optimizer.join(divide_by_active=True).__enter__()
    optimizer.close()
