"""A running mean that stops no rank, and what all ranks say to each other beside the average."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import pushsum_opt as ps
from pushsum_opt.errors import ConfigurationError, MismatchError
from pushsum_opt.testing import RankErrors


def values(rank):
    generator = np.random.default_rng(rank)
    return [(float(generator.normal()), int(generator.integers(0, 9))) for _ in range(20 + rank)]


KINDS = {
    "numbers": lambda v, n: (v, n),
    "tensors": lambda v, n: (torch.tensor(v, dtype=torch.float64, requires_grad=True), n),
    "counts as tensors": lambda v, n: (torch.tensor(v, dtype=torch.float64), torch.tensor(n)),
    "numbers with counts as tensors": lambda v, n: (v, torch.tensor([n])),
    "numpy": lambda v, n: (np.float64(v), np.int64(n)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_is_the_mean_over_the_samples_of_all_ranks(kind):
    def rank(comm):
        metric = ps.Metric(comm=comm)
        for v, n in values(comm.rank):
            metric.update(*KINDS[kind](v, n))
        mine = values(comm.rank)
        assert metric.local == pytest.approx(sum(v * n for v, n in mine) / sum(n for _, n in mine), rel=1e-12)
        return metric.compute()

    everything = [pair for rank in range(4) for pair in values(rank)]
    expected = sum(v * n for v, n in everything) / sum(n for _, n in everything)
    found = ps.testing.run(4, rank)
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(expected, rel=1e-12)


def test_update_moves_nothing_between_ranks_and_does_not_wait_for_the_device():
    """A meta tensor has no values: whoever asks for one fails."""
    metric = ps.Metric()
    metric.update(torch.ones((), device="meta"), n=torch.ones((), device="meta"))
    metric.update(torch.ones((), device="meta"), n=3)


def test_a_rank_that_counted_nothing_counts_as_nothing_and_values_may_be_arrays():
    def rank(comm):
        metrics = {"a": ps.Metric(), "b": ps.Metric(), "c": ps.Metric()}
        if comm.rank == 1:
            metrics["a"].update(torch.tensor([1.0, 3.0]), n=2)
            metrics["b"].update(7)
        return ps.Metric.compute_all(metrics, comm=comm)

    for found in ps.testing.run(3, rank):
        assert found["a"].tolist() == [1.0, 3.0]
        assert found["b"] == 7.0
        assert math.isnan(found["c"])


def test_a_metric_goes_on_after_compute_and_from_its_state_and_begins_anew_after_reset():
    def rank(comm):
        metric, other = ps.Metric(comm=comm), ps.Metric(comm=comm)
        with torch.inference_mode():
            metric.update(torch.tensor(1.0))
        first = metric.compute()
        metric.update(torch.tensor(4.0), n=2)
        other.load_state_dict(metric.state_dict())
        other.update(torch.tensor(3.0), n=3)
        metric.reset()
        assert math.isnan(metric.local)
        return first, other.compute()

    assert ps.testing.run(2, rank) == [(1.0, 3.0)] * 2


def test_what_is_no_metric_is_refused_by_name():
    metric = ps.Metric()
    metric.update(1.0)
    for value, n, message in (
        ([1.0, 2.0], 1, r"shape \[2\] after values of shape \[\]"),
        (torch.ones((), dtype=torch.complex64), 1, "complex"),
        ("high", 1, "a str"),
        (1.0, [1, 2], "n has shape"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            metric.update(value, n)

    def apart(comm):
        metric = ps.Metric(comm=comm)
        metric.update(np.ones(1 + comm.rank))
        metric.compute()

    with pytest.raises(RankErrors, match=r"shape \[1\] on rank 0 and \[2\] on rank 1") as raised:
        ps.testing.run(2, apart)
    assert all(isinstance(error, MismatchError) for error in raised.value.errors.values())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda r: r + 10**30, 3 * 10**30 + 3),
        (lambda r: 0.5 * r, 1.5),
        (lambda r: r == 1, 1),
        (lambda r: 1j * r, 3j),
        (lambda r: np.array([2**60 + r, -5]), np.array([3 * 2**60 + 3, -15])),
        (lambda r: torch.tensor([1, -r], dtype=torch.int32), torch.tensor([3, -3])),
        (lambda r: torch.tensor([[r > 0]]), torch.tensor([[2]])),
        (lambda r: torch.full((2,), 0.5 + r, dtype=torch.bfloat16), torch.full((2,), 4.5, dtype=torch.bfloat16)),
        (lambda r: np.float32(r), 3.0),
    ],
)
def test_sum_is_exact_and_keeps_ints(value, expected):
    for found in ps.testing.run(3, lambda comm: ps.sum(value(comm.rank), comm=comm)):
        if isinstance(expected, torch.Tensor):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
        elif isinstance(expected, np.ndarray):
            assert found.dtype == np.int64
            assert found.tolist() == expected.tolist()
        else:
            assert type(found) is type(expected)
            assert found == expected


def test_sums_of_different_things_are_refused_on_every_rank():
    with pytest.raises(RankErrors, match=r"shape \[1\] on rank 0.*shape \[2\] on rank 1"):
        ps.testing.run(2, lambda comm: ps.sum(np.ones(1 + comm.rank), comm=comm))
    with pytest.raises(RankErrors, match="allgather"):
        ps.testing.run(1, lambda comm: ps.sum("text", comm=comm))


def test_allgather_keeps_the_order_of_ranks_and_barrier_waits_for_all():
    arrived = []

    def rank(comm):
        arrived.append(comm.rank)
        ps.barrier(comm=comm)
        assert len(arrived) == 3
        return ps.allgather((comm.rank, "x" * comm.rank), comm=comm)

    assert ps.testing.run(3, rank) == [[(0, ""), (1, "x"), (2, "xx")]] * 3


@pytest.mark.parametrize("n", [0, torch.tensor(0), np.int64(0)])
def test_the_mean_of_no_samples_counts_nothing_though_it_is_nan(n):
    metric = ps.Metric()
    metric.update(torch.tensor(math.nan), n=n)
    metric.update(2.0, n=3)
    metric.update(math.nan, n=n)
    assert metric.local == 2.0
    for wrong in (-1, math.nan):
        with pytest.raises(ConfigurationError, match="expected the number of samples"):
            metric.update(1.0, n=wrong)
