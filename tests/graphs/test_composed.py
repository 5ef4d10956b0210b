"""Graphs made of graphs: Schedule and Hierarchical."""

from __future__ import annotations

import numpy as np
import pytest

from pushsum_opt import graphs
from pushsum_opt.errors import GraphError
from pushsum_opt.graphs import Hierarchical, Schedule
from pushsum_opt.mixing import analyse, mixing_matrix, window_matrix


def test_a_schedule_changes_peers_and_shares_in_one_round():
    two, one = graphs.KPeerExponential(2), graphs.OnePeerExponential()
    graph = Schedule([(30, two), (None, one)])
    for rank in range(8):
        for round in range(30):
            assert graph.gives(rank, 8, round) == two.gives(rank, 8, round)
            assert graph.in_peers(rank, 8, round) == two.in_peers(rank, 8, round)
        for round in range(30, 60):
            assert graph.gives(rank, 8, round) == one.gives(rank, 8, round - 30)
            assert graph.in_peers(rank, 8, round) == one.in_peers(rank, 8, round - 30)
    for round in range(60):
        matrix = mixing_matrix(graph, 8, round)
        np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-15)
        np.testing.assert_allclose(matrix[matrix > 0], 1 / 3 if round < 30 else 1 / 2)


def test_the_graph_that_takes_over_begins_its_cycle():
    """So that an exact average is complete log2 n rounds after the change, whenever that is."""
    graph = Schedule([(7, graphs.Ring()), (None, graphs.OnePeerExponential())])
    np.testing.assert_allclose(window_matrix(graph, 8, 3, first=7), 1 / 8, atol=1e-15)


def test_a_schedule_of_one_graph_is_that_graph():
    graph = Schedule([(None, graphs.BaseK(1))])
    assert graph.period(7) == graphs.BaseK(1).period(7)
    assert [graph.gives(3, 7, k) for k in range(9)] == [graphs.BaseK(1).gives(3, 7, k) for k in range(9)]


def test_every_graph_of_a_schedule_is_checked():
    pairs = graphs.from_function(lambda rank, size, round: rank ^ 1)
    for phases in ([(10, pairs), (None, graphs.Ring())], [(10, graphs.Ring()), (None, pairs)]):
        with pytest.raises(GraphError, match="never reaches"):
            Schedule(phases).check(8)
    with pytest.raises(GraphError, match="powers of two"):
        Schedule([(10, graphs.Ring()), (None, graphs.Hypercube())]).check(6)


@pytest.mark.parametrize(
    "rounds", [(5,), (None, None), (5, 5, None), (7, 5, None), (0, None), (2.5, None), (True, None), ("5", None)]
)
def test_a_schedule_must_ascend_and_end_with_none(rounds):
    with pytest.raises(GraphError, match="ascending from 1 on, and None for the last"):
        Schedule([(until, graphs.Ring()) for until in rounds])


@pytest.mark.parametrize("phases", [[], [graphs.Ring()], [(1, 2, 3)]])
def test_a_schedule_is_made_of_pairs(phases):
    with pytest.raises(GraphError, match="pair"):
        Schedule(phases)


def test_schedules_that_change_in_other_rounds_have_other_fingerprints():
    one, other = (Schedule([(until, graphs.Ring()), (None, graphs.BaseK(1))]) for until in (1000, 1001))
    assert one.fingerprint(9) != other.fingerprint(9)


def test_a_schedule_knows_the_partners_of_all_its_graphs():
    path = graphs.from_edges([(0, 3), (3, 0), (1, 2), (2, 1), (0, 1), (1, 0)])
    graph = Schedule([(1000, graphs.Ring()), (None, path)])
    assert graph.partners(0, 4) == {1, 3}
    assert graph.partners(2, 4) == {1, 3}


@pytest.mark.parametrize(("size", "lanes"), [(12, 4), (12, 3), (35, 5), (8, 8), (7, 1)])
def test_even_rounds_stay_inside_hosts_and_odd_rounds_in_the_lane(size, lanes):
    graph = Hierarchical(lanes)
    for round in range(10):
        for rank in range(size):
            for peer in graph.out_peers(rank, size, round):
                if round % 2:
                    assert peer % lanes == rank % lanes
                else:
                    assert peer // lanes == rank // lanes


@pytest.mark.parametrize(("size", "lanes"), [(12, 4), (12, 3), (35, 5), (8, 8), (7, 1), (64, 8)])
def test_exact_levels_make_an_exact_whole(size, lanes):
    graph = Hierarchical(lanes)
    np.testing.assert_allclose(window_matrix(graph, size, graph.period(size)), 1 / size, atol=1e-14)


def test_hierarchical_is_the_kronecker_product_of_its_levels():
    graph = Hierarchical(3, outer=graphs.RandomPeer(1), inner=graphs.Ring())
    for m in range(5):
        inside = np.kron(np.eye(4), mixing_matrix(graphs.Ring(), 3, m))
        between = np.kron(mixing_matrix(graphs.RandomPeer(1), 4, m), np.eye(3))
        np.testing.assert_array_equal(mixing_matrix(graph, 12, 2 * m), inside)
        np.testing.assert_array_equal(mixing_matrix(graph, 12, 2 * m + 1), between)


def test_hierarchical_takes_functions_and_keeps_their_shares():
    graph = Hierarchical(2, outer=lambda rank, size, round: {(rank + 1) % size: 0.75})
    assert graph.gives(0, 6, 1) == ((2, 0.75),)
    assert analyse(graph, 6).busiest == 1


def test_both_levels_of_a_hierarchy_are_checked():
    with pytest.raises(GraphError, match="powers of two"):
        Hierarchical(4, outer=graphs.Hypercube()).check(12)
    with pytest.raises(GraphError, match="powers of two"):
        Hierarchical(3, inner=graphs.Hypercube()).check(12)
    with pytest.raises(GraphError, match="at least 1"):
        Hierarchical(0)
