"""The Base-(k+1) graph is exact in finitely many rounds for every number of ranks and peers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pushsum_opt import graphs
from pushsum_opt.mixing import mixing_matrix, window_matrix

SIZES = [*range(1, 66), 96, 99, 100, 101, 127, 128, 129]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_it_averages_exactly_within_a_period_at_every_size(k):
    for size in SIZES:
        graph = graphs.BaseK(k)
        product = window_matrix(graph, size, graph.period(size), first=3 * graph.period(size))
        np.testing.assert_allclose(product, 1 / size, rtol=0, atol=1e-14, err_msg=f"{size} ranks")


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_every_round_is_symmetric_and_has_at_most_k_peers(k):
    for size in SIZES:
        graph = graphs.BaseK(k)
        for round in range(graph.period(size)):
            matrix = mixing_matrix(graph, size, round)
            np.testing.assert_array_equal(matrix, matrix.T)
            np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=0, atol=1e-15)
            assert (np.count_nonzero(matrix, axis=0) <= k + 1).all()


@pytest.mark.parametrize(
    ("size", "rounds"),
    [(3, 3), (5, 5), (6, 4), (7, 5), (9, 7), (10, 6), (12, 5), (15, 7), (24, 6), (31, 9), (33, 11)],
)
def test_base_2_has_the_known_number_of_rounds(size, rounds):
    assert graphs.BaseK(1).period(size) == rounds


def test_the_period_is_within_the_bound_of_the_paper():
    """Takezawa et al. 2023, theorem 1: at most 2 log_(k+1) n + 2 rounds."""
    for k in (1, 2, 3, 4, 7):
        for size in range(2, 700):
            assert graphs.BaseK(k).period(size) <= 2 * math.log(size, k + 1) + 2 + 1e-9, (k, size)


def test_no_shorter_period_would_do():
    """One round less leaves something, at every size: the period holds no idle round."""
    for size in range(2, 34):
        graph = graphs.BaseK(1)
        assert np.abs(window_matrix(graph, size, graph.period(size) - 1) - 1 / size).max() > 1e-3


@pytest.mark.parametrize(
    ("k", "size", "rounds"), [(2, 9, 2), (4, 25, 2), (5, 36, 2), (3, 64, 3), (5, 8, 2), (9, 100, 2)]
)
def test_smooth_sizes_take_as_few_rounds_as_factors(k, size, rounds):
    assert graphs.BaseK(k).period(size) == rounds


@pytest.mark.parametrize(("k", "size"), [(1, 4095), (2, 4094), (4, 3999)])
def test_large_sizes_average_exactly(k, size):
    graph = graphs.BaseK(k)
    random = np.random.default_rng(0).normal(size=size)
    values = random
    for round in range(graph.period(size)):
        moved = values.copy()
        for rank in range(size):
            for peer, share in graph.gives(rank, size, round):
                moved[rank] -= share * values[rank]
                moved[peer] += share * values[rank]
        values = moved
    np.testing.assert_allclose(values, random.mean(), rtol=0, atol=1e-13)
