"""Exponential graphs, the hypercube and the bipartite graph: their definitions and the papers' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pushsum_opt import graphs
from pushsum_opt.errors import GraphError
from pushsum_opt.mixing import analyse, mixing_matrix, second_singular_value, window_matrix

POWERS = [2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize("size", range(2, 40))
def test_one_peer_visits_the_distances_that_are_powers_of_two(size):
    graph = graphs.OnePeerExponential()
    length = math.floor(math.log2(size - 1)) + 1 if size > 2 else 1
    assert graph.period(size) == length
    for round in range(2 * length):
        assert graph.out_peers(size - 1, size, round) == ((2 ** (round % length) - 1) % size,)


@pytest.mark.parametrize(
    "family", [graphs.OnePeerExponential(), graphs.Hypercube(), graphs.BipartiteExponential(), graphs.BaseK(1)]
)
@pytest.mark.parametrize("size", POWERS)
def test_powers_of_two_average_exactly_in_log2_n_rounds(family, size):
    rounds = int(math.log2(size))
    np.testing.assert_allclose(window_matrix(family, size, rounds), np.full((size, size), 1 / size), atol=1e-15)
    assert analyse(family, size).rounds_to_exact == rounds


def test_one_peer_exponential_averages_exactly_from_any_round_on():
    for first in range(5):
        np.testing.assert_allclose(window_matrix(graphs.OnePeerExponential(), 32, 5, first), 1 / 32, atol=1e-15)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (3, 0.25),
        (5, 0.20),
        (6, 0.22),
        (7, 0.125),
        (9, 0.1175),
        (10, 0.19),
        (12, 0.21),
        (15, 0.063),
        (24, 0.21),
        (31, 0.031),
    ],
)
def test_one_cycle_elsewhere_leaves_the_known_part(size, expected):
    digits = len(str(expected).partition(".")[2])
    found = second_singular_value(graphs.OnePeerExponential(), size)
    assert found == pytest.approx(expected, abs=0.501 * 10**-digits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_one_rank_less_than_a_power_of_two_leaves_one_part_in_it(bits):
    assert second_singular_value(graphs.OnePeerExponential(), 2**bits - 1) == pytest.approx(2.0**-bits, rel=1e-9)


@pytest.mark.parametrize("size", [2, 4, 6, 8, 10, 16, 24, 32, 48, 64, 100, 1000, 4096])
def test_static_exponential_has_the_known_spectral_gap_at_even_sizes(size):
    expected = 1 - 2 / (1 + math.ceil(math.log2(size)))
    assert second_singular_value(graphs.StaticExponential(), size) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [3, 5, 7, 9, 15, 31, 33, 99])
def test_static_exponential_is_at_least_as_good_at_odd_sizes(size):
    assert second_singular_value(graphs.StaticExponential(), size) <= 1 - 2 / (1 + math.ceil(math.log2(size))) + 1e-12


@pytest.mark.parametrize(
    ("offsets", "expected"), [((1, 2, 4, 8, 16), 0.0), ((1, 2, 3, 4, 5), 0.579), ((1, -1, 2, -2, 4), 0.775)]
)
def test_five_rounds_of_one_peer_at_32_ranks(offsets, expected):
    """Assran et al. 2019, appendix A: squared second singular values of the product."""
    graph = graphs.from_function(lambda rank, size, round: (rank + offsets[round % 5]) % size, period=5)
    assert second_singular_value(graph, 32) ** 2 == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("size", [2, 3, 8, 9, 33, 100])
def test_k_peers_is_one_peer_for_k_1_and_static_for_large_k(size):
    for round in range(7):
        for rank in range(size):
            one = graphs.KPeerExponential(1).gives(rank, size, round)
            assert one == graphs.OnePeerExponential().gives(rank, size, round)
            all_of_them = graphs.KPeerExponential(20).gives(rank, size, round)
            assert all_of_them == graphs.StaticExponential().gives(rank, size, round)


@pytest.mark.parametrize("size", range(2, 40))
@pytest.mark.parametrize("k", [2, 3, 5])
def test_k_peers_go_round_the_distances_in_order(size, k):
    distances = [2**j for j in range(graphs.OnePeerExponential().period(size))]
    taken = []
    for round in range(graphs.KPeerExponential(k).period(size)):
        peers = graphs.KPeerExponential(k).out_peers(0, size, round)
        assert len(peers) == min(k, len(distances))
        taken += [peer % size for peer in peers]
    if k < len(distances):
        assert taken == [distances[index % len(distances)] for index in range(len(taken))]
    assert all(taken.count(distance) == len(taken) // len(distances) for distance in distances)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "2"])
def test_k_must_be_a_number_of_peers(k):
    for family in (graphs.KPeerExponential, graphs.BaseK):
        with pytest.raises(GraphError, match="expected a whole number of peers, at least 1"):
            family(k)


@pytest.mark.parametrize("size", [2, 6, 10, 32])
def test_bipartite_pairs_even_ranks_with_odd_ones(size):
    graph = graphs.BipartiteExponential()
    for round in range(graph.period(size)):
        for rank in range(size):
            (peer,) = graph.out_peers(rank, size, round)
            assert peer % 2 != rank % 2
            assert graph.out_peers(peer, size, round) == (rank,)
        matrix = mixing_matrix(graph, size, round)
        np.testing.assert_array_equal(matrix, matrix.T)


@pytest.mark.parametrize(
    ("graph", "size", "near"),
    [
        (graphs.Hypercube(), 12, "8 and 16"),
        (graphs.BipartiteExponential(), 7, "6 and 8"),
        (graphs.Torus(rows=4), 10, "multiples of 4"),
        (graphs.Hierarchical(8), 20, "16 and 24"),
        (graphs.Star(centre=4), 4, "0 to 3"),
    ],
)
def test_a_size_that_a_family_is_not_defined_at_is_an_error_that_names_those_that_do(graph, size, near):
    for ask in (graph.check, lambda size: graphs.resolve(graph, size)):
        with pytest.raises(GraphError, match=near):
            ask(size)
    if not isinstance(graph, graphs.Star):
        with pytest.raises(GraphError, match=near):
            graph.out_peers(0, size, 0)


@pytest.mark.parametrize("size", [3, 8, 33])
def test_rings_have_the_known_second_singular_values(size):
    assert second_singular_value(graphs.Ring(), size) == pytest.approx(math.cos(math.pi / size), abs=1e-12)
    both = (1 + 2 * math.cos(2 * math.pi / size)) / 3
    assert second_singular_value(graphs.Ring(peers=2), size) == pytest.approx(abs(both), abs=1e-12)


@pytest.mark.parametrize(("size", "shape"), [(1, (1, 1)), (7, (1, 7)), (12, (3, 4)), (16, (4, 4)), (100, (10, 10))])
def test_torus_is_the_grid_nearest_to_a_square(size, shape):
    assert graphs.Torus().shape(size) == shape
    assert len(graphs.Torus().out_peers(0, size, 0)) == sum(min(2, side - 1) for side in shape)


@pytest.mark.parametrize("size", [2, 3, 10, 100])
def test_star_settles_at_the_known_push_weights(size):
    weights = np.ones(size)
    for _ in range(60):
        weights = mixing_matrix(graphs.Star(), size, 0) @ weights
    np.testing.assert_allclose(weights[0], size**2 / (3 * size - 2))
    np.testing.assert_allclose(weights[1:], 2 * size / (3 * size - 2))


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_complete_averages_in_one_round(size):
    np.testing.assert_allclose(mixing_matrix(graphs.Complete(), size, 3), 1 / size)


def test_the_default_is_one_peer_exponential_at_powers_of_two_and_base_2_elsewhere():
    for size in range(1, 130):
        expected = "OnePeerExponential()" if size in (1, *POWERS) else "BaseK(1)"
        assert repr(graphs.resolve(None, size)) == expected
    for size in range(2, 130, 3):
        assert analyse(graphs.default(size), size).rounds_to_exact == graphs.default(size).period(size)
