"""stats() under its documented keys."""

from __future__ import annotations

import math

import pytest
import torch
from optimizer.common import KINDS, network, ring, train

import pushsum_opt as ps
from pushsum_opt.gossip.asynchronous import MOST_ARRIVING
from pushsum_opt.gossip.wire import HEADER_BYTES

KEYS = {
    "round", "push_weight", "seconds_waited", "bytes_sent", "worst_age", "chunks_skipped", "blocks_missed", "in_flight",
    "extra_bytes",
}  # fmt: skip


@pytest.mark.parametrize("staleness", [0, 2, "unbounded"])
@pytest.mark.parametrize("size", [1, 3])
def test_stats_are_plain_floats_under_the_documented_keys(staleness, size):
    def rank(comm):
        model = network()
        options = {"graph": ring, "staleness": staleness, "comm": comm}
        with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, **options) as wrapped:
            first = wrapped.stats()
            train(wrapped, model, 3, comm.rank)
            stats = wrapped.stats()
            assert first["round"] == first["bytes_sent"] == first["worst_age"] == 0.0
            most = MOST_ARRIVING if staleness == "unbounded" and size > 1 else 0  # others may have sent by now
            assert 0.0 <= first["in_flight"] <= most
            assert first["seconds_waited"] <= stats["seconds_waited"]
            assert stats["round"] == 3.0
            assert stats["push_weight"] == wrapped.push_weight
            for one in (first, stats):
                assert set(one) == KEYS
                assert all(type(value) is float and math.isfinite(value) for value in one.values())
                assert all(value >= 0 for value in one.values())
            documented = ps.PushSum.stats.__doc__
            assert all(f"``{key}``" in documented for key in KEYS)
            return stats

    numbers = sum(p.numel() for p in network().parameters())
    for stats in ps.testing.run(size, rank):
        if staleness != "unbounded":
            assert 4 * numbers * 3 * (size > 1) <= stats["bytes_sent"] <= (4 * numbers + HEADER_BYTES) * 3 * (size > 1)
        if staleness == 0:
            assert (stats["in_flight"], stats["worst_age"], stats["chunks_skipped"]) == (0.0, 0.0, 0.0)


def test_worst_age_is_that_of_the_in_peer_not_heard_from_for_longest():
    """In a ring of two in which rank 1 sends in every third round only."""

    def seldom(rank, size, round):
        return (1,) if rank == 0 else ((0,) if round % 3 == 0 else ())

    def rank(comm):
        tensor = torch.zeros(3)
        with ps.PushSum([tensor], graph=ps.graphs.from_function(seldom, period=3), comm=comm) as push_sum:
            ages = []
            for _ in range(6):
                push_sum.mix()
                ages.append(push_sum.stats()["worst_age"])
            return ages

    assert ps.testing.run(2, rank) == [[0.0, 1.0, 2.0, 0.0, 1.0, 2.0], [0.0] * 6]
