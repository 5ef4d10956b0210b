"""Rounds that are exact averages, against plain numpy in the paper's form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optimizer.common import batch, network, values
from support.scenarios import shift

import pushsum_opt as ps
from pushsum_opt.algorithms import PeriodicAverage
from pushsum_opt.collectives import averaged
from pushsum_opt.errors import ConfigurationError, NonFiniteError
from pushsum_opt.testing import RankErrors

TARGETS = np.array([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0], [0.0, 1.0], [2.0, 2.0]])


def gossip_pga(size, rounds, every, first, data_weights, gamma=0.1):
    """Algorithm 1 of Chen et al. (2021) with push-sum as the gossip, on quadratics; returns (z, w) of every round."""
    a = size * data_weights / data_weights.sum()
    x, w = np.zeros((size, 2)), a.copy()
    history = []
    for k in range(rounds):
        x = x - gamma * a[:, None] * (x / w[:, None] - TARGETS[:size])
        if k < first or (k + 1) % every == 0:
            x, w = a[:, None] * x.sum(0) / size, a.copy()
        else:
            p = np.zeros((size, size))
            for i in range(size):
                peers = shift(i, size, k)
                for j in (i, *peers):
                    p[j, i] = 1 / (1 + len(peers))
            x, w = p @ x, p @ w
        history.append((x / w[:, None], w))
    return history


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("every", "first"), [(4, 0), (3, 5), (None, 4)])
def test_rounds_equal_the_paper_s(size, every, first):
    data_weights = np.arange(1.0, size + 1)

    def rank(comm):
        z = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.1)
        options = {"graph": shift, "data_weight": data_weights[comm.rank], "comm": comm}
        algorithm = PeriodicAverage(every, first=first)
        seen = []
        with ps.PushSumOptimizer(inner, algorithm=algorithm, **options) as optimizer:
            for _ in range(10):
                z.grad = z.detach() - torch.from_numpy(TARGETS[comm.rank])
                optimizer.step()
                seen.append((z.detach().numpy().copy(), optimizer.push_weight))
            assert optimizer.round == 10
        return seen

    expected = gossip_pga(size, 10, every or 100, first, data_weights)
    for i, seen in enumerate(ps.testing.run(size, rank)):
        for k, (z, w) in enumerate(seen):
            np.testing.assert_allclose(z, expected[k][0][i], atol=1e-13, err_msg=f"rank {i}, round {k}")
            assert w == pytest.approx(expected[k][1][i], rel=1e-13)


@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_what_is_in_flight_takes_part_and_all_ranks_agree(staleness):
    def rank(comm):
        z = np.full(7, float(comm.rank))
        with ps.PushSum([z], graph=shift, staleness=staleness, data_weight=1.0 + comm.rank, comm=comm) as push_sum:
            for _ in range(5):
                push_sum.mix()
            push_sum.average()
            assert push_sum.round == 6
            assert push_sum.push_weight == push_sum.initial_weight
            after = z.copy()
            for _ in range(3):
                push_sum.mix()
        return after, z

    exact = sum(i * (i + 1) for i in range(4)) / sum(i + 1 for i in range(4))
    for after, later in ps.testing.run(4, rank, seed=3):
        np.testing.assert_allclose(after, exact, rtol=1e-14)
        np.testing.assert_allclose(later, exact, rtol=1e-14)


def test_averages_of_half_precision_keep_what_bf16_cannot_hold():
    def rank(comm):
        z = torch.full((50,), 1.0 + 0.37 * comm.rank, dtype=torch.bfloat16)
        start = z.double().mean().item()
        with ps.PushSum([z], comm=comm) as push_sum:
            for _ in range(40):
                push_sum.average()
                push_sum.mix()
            with averaged(push_sum):
                pass
            numerator = push_sum.memory.numerator(push_sum.memory.chunks[0], push_sum.push_weight)
        return start, numerator.mean()

    starts, numerators = zip(*ps.testing.run(3, rank), strict=True)
    assert sum(numerators) == pytest.approx(sum(starts), rel=1e-6)


def test_training_in_all_reduce_rounds_is_training_on_the_whole_batch():
    """With plain SGD and an average in every round: the same as one process on the mean gradient."""

    def rank(comm):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with ps.PushSumOptimizer(optimizer, model, algorithm=PeriodicAverage(first=100), comm=comm) as wrapped:
            for k in range(6):
                inputs, targets = batch(k, comm.rank)
                wrapped.zero_grad()
                (model(inputs) - targets).square().mean().backward()
                wrapped.step()
        return values(model)

    alone = network()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for k in range(6):
        optimizer.zero_grad()
        for i in range(3):
            inputs, targets = batch(k, i)
            ((alone(inputs) - targets).square().mean() / 3).backward()
        optimizer.step()
    for result in ps.testing.run(3, rank):
        for mine, expected in zip(result, values(alone), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def test_gossip_every_leaves_local_steps_between_rounds():
    """Local SGD: with a complete graph, every third step makes all ranks equal, and only every third."""

    def rank(comm):
        z = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.1)
        spread = []
        with ps.PushSumOptimizer(inner, graph=ps.graphs.Complete(), gossip_every=3, comm=comm) as optimizer:
            for _ in range(7):
                z.grad = z.detach() - torch.from_numpy(TARGETS[comm.rank])
                optimizer.step()
                spread.append(ps.consensus_distance(optimizer) > 1e-12)
            return spread, optimizer.round

    assert ps.testing.run(3, rank) == [([True, True, False, True, True, False, True], 2)] * 3


def test_steps_between_rounds_are_saved():
    def rank(comm):
        z = torch.zeros(2, requires_grad=True)
        z.grad = torch.ones(2)
        other = z.detach().clone().requires_grad_()  # over z itself, the second would take the first one's place
        other.grad = torch.ones(2)
        first = ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.1), gossip_every=3, comm=comm)
        second = ps.PushSumOptimizer(torch.optim.SGD([other], lr=0.1), gossip_every=3, comm=comm)
        for _ in range(5):
            first.step()
        second.load_state_dict(first.state_dict())
        second.step()
        rounds = second.round
        first.close()
        second.close()
        return rounds

    assert ps.testing.run(2, rank) == [2, 2]


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_diverged_rank_is_named_or_its_part_left_out(nonfinite):
    def rank(comm):
        z = np.full(4, np.nan if comm.rank == 1 else 2.0)
        other = np.full(4, float(comm.rank), dtype=np.float32)
        with ps.PushSum([z, other], nonfinite=nonfinite, comm=comm) as push_sum:
            push_sum.average()
        return z[0], other[0]

    if nonfinite == "raise":
        with pytest.raises(RankErrors) as failure:
            ps.testing.run(3, rank)
        assert all(isinstance(error, NonFiniteError) for error in failure.value.errors.values())
        assert "exact average of round 0 holds inf or nan in tensor 0" in str(failure.value)
    else:
        results = ps.testing.run(3, rank)
        assert [z for z, _ in results if not np.isnan(z)] == [2.0, 2.0]
        assert [other for _, other in results] == [1.0] * 3


def test_arguments_that_cannot_be_used_are_refused():
    for bad in [{"every": 0}, {"every": 2.5}, {"first": -1}, {"every": True}]:
        with pytest.raises(ConfigurationError, match="expected an int of at least"):
            PeriodicAverage(**bad)
    with pytest.raises(ConfigurationError, match="got neither"):
        PeriodicAverage()

    def rank(comm):
        z = torch.zeros(1, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.1)
        with pytest.raises(ConfigurationError, match="asynchronous ranks take different numbers of rounds"):
            ps.PushSumOptimizer(inner, staleness="unbounded", algorithm=PeriodicAverage(2), comm=comm)
        with pytest.raises(ConfigurationError, match="expected one of pushsum_opt"):
            ps.PushSumOptimizer(inner, algorithm="average", comm=comm)
        used = PeriodicAverage(2)
        with (
            ps.PushSumOptimizer(inner, algorithm=used, comm=comm),
            pytest.raises(ConfigurationError, match="belongs to another optimizer"),
        ):
            ps.PushSumOptimizer(inner, algorithm=used, comm=comm)

    ps.testing.run(2, rank)


def test_ranks_with_different_algorithms_are_told():
    def rank(comm):
        inner = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        ps.PushSumOptimizer(inner, algorithm=PeriodicAverage(2 + comm.rank), comm=comm)

    with pytest.raises(RankErrors, match=r"algorithm is PeriodicAverage\(every=2, first=0\) on rank 0"):
        ps.testing.run(2, rank)
