"""Whoever picks a graph that mixes slowly is told once, with the better choice."""

from __future__ import annotations

import warnings

import pytest

from pushsum_opt import graphs
from pushsum_opt.graphs import SlowMixingWarning, resolve


@pytest.mark.parametrize(
    ("graph", "size", "better"),
    [
        (graphs.Ring(), 32, r"graphs.OnePeerExponential\(\) also has 1 peer per rank and averages exactly in 5 rounds"),
        (graphs.Ring(), 33, r"graphs.BaseK\(1\) also has 1 peer per rank and averages exactly in 11 rounds"),
        (graphs.Ring(peers=2), 81, r"graphs.BaseK\(2\) also has 2 peers per rank and averages exactly in 4 rounds"),
        (graphs.Torus(), 256, r"graphs.BaseK\(4\) also has 4 peers per rank"),
        (lambda rank, size, round: (rank + 1) % size, 100, r"graphs.BaseK\(1\)"),
        (graphs.Hierarchical(2, outer=graphs.Ring()), 64, r"Ring\(\) mixes slowly at 32 ranks"),
        (graphs.Schedule([(9, graphs.BaseK(1)), (None, graphs.Ring())]), 64, r"Ring\(\) mixes slowly at 64 ranks"),
        ([(rank, rank ^ 1) for rank in range(64)] + [(rank, (rank + 2) % 64) for rank in range(64)], 64, "BaseK"),
    ],
)
def test_a_slow_graph_is_named_with_a_better_one(graph, size, better):
    with pytest.warns(SlowMixingWarning, match=better) as caught:
        resolve(graph, size)
    assert len(caught) == 1
    assert caught[0].filename == __file__, "it points to who asked"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve(graph, size, warn=False)


@pytest.mark.parametrize("size", [*range(1, 34), 48, 64, 100])
def test_nothing_is_said_of_the_families_that_are_fast(size):
    slow = ("Ring", "Torus")
    for graph in graphs.families(size):
        if type(graph).__name__ not in slow:
            resolve(graph, size)  # a warning is an error here


@pytest.mark.parametrize("size", range(1, 8))
def test_a_ring_of_few_ranks_is_fast_enough(size):
    resolve(graphs.Ring(), size)


def test_a_good_graph_of_a_user_is_left_in_peace():
    for size in (8, 64, 100, 256):
        resolve(lambda rank, size, round: (rank + (1 << round % (size - 1).bit_length())) % size, size)
        resolve(lambda rank, size, round: range(1, size) if rank == 0 else 0, size)


def test_the_warning_is_shown_once_however_often_the_graph_is_made():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            resolve(graphs.Ring(), 64)
    assert len(caught) == 1
