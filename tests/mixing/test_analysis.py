"""The analysis agrees with dense algebra, with closed forms, and with push-sum as it runs."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
from graphs.every import every_graph

from pushsum_opt import graphs
from pushsum_opt.errors import ConfigurationError, GraphError
from pushsum_opt.graphs import Graph
from pushsum_opt.mixing import analyse, mixing_matrix, second_singular_value, window_matrix
from pushsum_opt.mixing.products import _Dense, _Probed

SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64, 100]


class Unlike(Graph):
    """Another graph's rules without its symmetry, so that they are analysed the long way."""

    def __init__(self, graph):
        self.graph = graph

    def out_peers(self, rank, size, round):
        return self.graph.out_peers(rank, size, round)

    def shares(self, rank, size, round):
        return self.graph.shares(rank, size, round)

    def period(self, size):
        return self.graph.period(size)

    def window(self, size):
        return self.graph.window(size)


@lru_cache(maxsize=64)
def product(graph, size, rounds):
    """Return P(rounds - 1) ... P(0) by dense algebra, from the product of one round less."""
    return mixing_matrix(graph, size, rounds - 1) @ product(graph, size, rounds - 1) if rounds else np.eye(size)


def matrix_of_errors(graph, size, rounds, weights):
    """Return diag(Phi a)^-1 Phi diag(a) - 1 a^T / n by dense algebra."""
    weighted = product(graph, size, rounds) * weights
    return weighted / weighted.sum(axis=1, keepdims=True) - weights / size


def push_sum(graph, size, z, weights, rounds):
    """Run push-sum message by message, in the paper's form; yield every rank's estimate and w after each round."""
    x, w = weights[:, None] * z, weights.copy()
    for round in range(rounds):
        next_x, next_w = x.copy(), w.copy()
        for rank in range(size):
            for peer, share in graph.gives(rank, size, round):
                next_x[peer] += share * x[rank]
                next_w[peer] += share * w[rank]
                next_x[rank] -= share * x[rank]
                next_w[rank] -= share * w[rank]
        x, w = next_x, next_w
        yield x / w[:, None], w


def distance(z, mean):
    """Return the root mean square over ranks of the norm of z_i - mean."""
    return math.sqrt(((z - mean) ** 2).sum(axis=1).mean())


def test_the_mixing_matrix_says_where_the_mass_of_each_rank_goes():
    matrix = mixing_matrix([(0, 1, 0.25), (0, 2, 0.5), (1, 0), (2, 1, 0.9)], 3, 0)
    np.testing.assert_allclose(matrix, [[0.25, 0.5, 0.0], [0.25, 0.5, 0.9], [0.5, 0.0, 0.1]])


def test_the_matrix_of_a_window_is_the_product_of_its_rounds_the_first_one_rightmost():
    graph = graphs.RandomPeer(2)
    expected = mixing_matrix(graph, 7, 5) @ mixing_matrix(graph, 7, 4) @ mixing_matrix(graph, 7, 3)
    np.testing.assert_allclose(window_matrix(graph, 7, 3, first=3), expected, atol=1e-15)
    np.testing.assert_allclose(window_matrix(graph, 7, 6), product(graph, 7, 6), atol=1e-15)
    np.testing.assert_array_equal(window_matrix(graph, 7, 0), np.eye(7))


@pytest.mark.parametrize("size", SIZES)
def test_the_curve_is_the_norm_of_the_errors_and_is_reached_by_push_sum_as_it_runs(size):
    """The worst start takes exactly the predicted path, and a random start stays below it."""
    rounds = 12
    for graph in every_graph(size):
        found = analyse(graph, size, rounds=rounds)
        random = np.random.default_rng(size).normal(size=(size, 3))
        paths = [z for z, _ in push_sum(graph, size, random, np.ones(size), rounds)]
        spread = distance(random, random.mean(axis=0))
        for k, error in zip(found.rounds[1:], found.errors[1:], strict=True):
            errors = matrix_of_errors(graph, size, k, np.ones(size))
            expected = np.linalg.norm(errors, 2)
            assert error == pytest.approx(expected, rel=0.03, abs=1e-12), (graph, k)
            assert distance(paths[k - 1], random.mean(axis=0)) <= expected * spread * (1 + 1e-9) + 1e-12
        last, error = [pair for pair in zip(found.rounds, found.errors, strict=True) if pair[1] > 1e-6 or size == 1][-1]
        if last > 0:
            worst = np.linalg.svd(matrix_of_errors(graph, size, last, np.ones(size)))[2][:1].T
            *_, (z, w) = push_sum(graph, size, worst, np.ones(size), last)
            reached = distance(z, worst.mean()) / distance(worst, worst.mean())
            assert reached == pytest.approx(error, rel=0.03), graph
            assert found.push_weights[0] - 1e-12 <= w.min() <= w.max() <= found.push_weights[1] + 1e-12


@pytest.mark.parametrize("size", [2, 5, 8, 12, 33])
def test_unequal_data_weights_are_taken_in(size):
    """The mean is the weighted one, w tends to what the graph makes of a, and steps are scaled by a / w."""
    given = np.random.default_rng(1).uniform(0.2, 3.0, size)
    weights = given * size / given.sum()
    z = np.random.default_rng(2).normal(size=(size, 3))
    mean = weights @ z / size
    for graph in every_graph(size):
        found = analyse(graph, size, data_weights=list(given), rounds=10)
        assert found.errors[0] == pytest.approx(np.linalg.norm(np.eye(size) - weights / size, 2))
        low, high = weights.min(), weights.max()
        slow = fast = 1.0
        for k, (estimate, w) in enumerate(push_sum(graph, size, z, weights, found.rounds[-1]), start=1):
            low, high = min(low, w.min()), max(high, w.max())
            slow, fast = min(slow, (weights / w).min()), max(fast, (weights / w).max())
            expected = np.linalg.norm(matrix_of_errors(graph, size, k, weights), 2)
            assert found.error(k) == pytest.approx(expected, rel=1e-6, abs=1e-12)
            assert distance(estimate, mean) <= expected * distance(z, z.mean(axis=0)) * (1 + 1e-9) + 1e-12
        assert found.push_weights == pytest.approx((low, high), rel=1e-9)
        assert found.step_scales == pytest.approx((slow, fast), rel=1e-9)


@pytest.mark.parametrize("size", [6, 32, 33, 100])
def test_structure_products_and_probes_agree(size):
    for graph in graphs.families(size):
        if graph.period(size) is None:
            continue
        by_structure, by_products = analyse(graph, size), analyse(Unlike(graph), size)
        assert by_structure.rounds_to(1e-3) == pytest.approx(by_products.rounds_to(1e-3), rel=0.03), graph
        assert by_structure.rounds_to_exact == by_products.rounds_to_exact
        second = by_products.second_singular_value
        assert by_structure.second_singular_value == pytest.approx(second, rel=0.02, abs=1e-12)
        assert by_structure.doubly_stochastic == by_products.doubly_stochastic
        assert by_structure.messages == pytest.approx(by_products.messages)
        assert by_structure.busiest == by_products.busiest
        assert by_structure.push_weights == pytest.approx(by_products.push_weights)


@pytest.mark.parametrize("graph", [*graphs.families(150), graphs.BaseK(4)])
def test_probes_find_the_worst_case_to_a_few_percent(graph):
    size = 150
    weights = np.random.default_rng(0).uniform(0.5, 1.5, size)
    weights *= size / weights.sum()
    dense, probed = _Dense(graph, size, weights), _Probed(graph, size, weights)
    for k in range(1, 25):
        dense.advance()
        probed.advance()
        expected = np.linalg.norm(matrix_of_errors(graph, size, k, weights), 2)
        if expected < 1e-11:
            assert max(dense.error(), probed.error()) < 1e-11
            break
        assert expected * 0.95 < dense.error() < expected * (1 + 1e-6)
        assert expected * 0.9 < probed.error() < expected * (1 + 1e-6)
    expected = np.linalg.svd(window_matrix(graph, size, 3), compute_uv=False)[1]
    assert probed.second_singular_value(3) == pytest.approx(expected, rel=0.01, abs=1e-12)


@pytest.mark.parametrize("size", [32, 64])
def test_the_second_singular_value_is_that_of_the_product(size):
    for graph in every_graph(size):
        rounds = graph.period(size) or 5
        expected = np.linalg.svd(window_matrix(graph, size, rounds), compute_uv=False)[1]
        assert second_singular_value(graph, size, rounds) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        if graph.period(size) is not None:
            assert analyse(graph, size).second_singular_value == pytest.approx(expected, rel=0.01, abs=1e-12)


def test_a_graph_that_never_repeats_needs_a_number_of_rounds():
    assert analyse(graphs.RandomPeer(), 9).second_singular_value is None
    with pytest.raises(ConfigurationError, match="never repeats: say over how many rounds"):
        second_singular_value(graphs.RandomPeer(), 9)


@pytest.mark.parametrize("size", [10, 100, 1000, 4096])
def test_rounds_beyond_the_curve_follow_from_its_rate(size):
    """A one-way ring leaves cos(pi / n)^k."""
    expected = math.log(1e-3) / math.log(math.cos(math.pi / size))
    assert analyse(graphs.Ring(), size).rounds_to(1e-3) == pytest.approx(expected, rel=1e-3, abs=1)


def test_a_graph_that_does_not_mix_never_gets_there():
    apart = graphs.from_edges([(0, 1), (1, 0), (2, 3), (3, 2)])
    found = analyse(apart, 4)
    assert found.rounds_to(1e-3) is None
    assert found.rounds_to_exact is None
    assert found.second_singular_value == pytest.approx(1)


def test_the_error_between_and_beyond_the_rounds_of_the_curve():
    found = analyse(graphs.Ring(), 20, rounds=40)
    for k in (0, 1, 7, 40, 41, 90, 400):
        assert found.error(k) == pytest.approx(math.cos(math.pi / 20) ** k)
    assert analyse(graphs.Complete(), 5).error(3) == pytest.approx(0, abs=1e-15)
    assert found.rounds_to(2.0) == 0


def test_fading_is_not_exact_and_vanishing_is():
    assert analyse(graphs.StaticExponential(), 6).rounds_to_exact is None
    assert analyse(graphs.EquiDyn(), 2, rounds=1000).rounds_to_exact is None
    assert analyse(graphs.BaseK(1), 6).rounds_to_exact == 4
    assert analyse(graphs.Complete(), 1).rounds_to_exact == 0


def test_messages_are_counted_over_all_rounds():
    star = analyse(graphs.Star(), 10)
    assert (star.messages, star.busiest) == (1.8, 9)
    base = analyse(graphs.BaseK(1), 6)
    assert (base.messages, base.busiest) == (0.75, 1)
    schedule = graphs.Schedule([(2, graphs.Ring()), (None, graphs.Complete())])
    assert analyse(schedule, 4).busiest == 3
    drawn = analyse(graphs.RandomPeer(), 50)
    assert drawn.messages == 1
    assert drawn.busiest > 1, "several send to the same rank"


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 0.0], [1.0, 2.0, float("inf")], [1, 2, -1], [[1, 2, 3]]])
def test_data_weights_must_be_one_positive_number_per_rank(weights):
    with pytest.raises(ConfigurationError, match="expected 3 numbers above 0"):
        analyse(graphs.Ring(), 3, data_weights=weights)


def test_a_graph_is_refused_at_a_size_that_it_is_not_defined_at():
    with pytest.raises(GraphError, match="powers of two"):
        analyse(graphs.Hypercube(), 6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [511, 512])
def test_every_family_is_analysed_at_hundreds_of_ranks_and_every_second_at_an_odd_number(size):
    user = graphs.from_function(lambda rank, size, round: ((rank + 1) % size, (rank * 5 + 3) % size), period=1)
    everyone = [*graphs.families(size), graphs.BaseK(4), user]
    for graph in everyone if size % 2 == 0 else everyone[::2]:
        found = analyse(graph, size)
        assert found.error(0) == pytest.approx(1.0)
        assert found.error(400) < 1.0, graph
