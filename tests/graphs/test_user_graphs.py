"""Graphs that a user writes: functions, edges, networkx graphs, and what ``graph=`` accepts."""

from __future__ import annotations

import subprocess
import sys

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushsum_opt import graphs
from pushsum_opt.errors import GraphError
from pushsum_opt.graphs import from_edges, from_function, from_networkx, resolve
from pushsum_opt.mixing import mixing_matrix


def test_a_function_may_return_a_rank_ranks_or_a_mapping_to_shares():
    answers = {0: 1, 1: [2, 0], 2: {0: 0.2}, 3: np.int64(0), 4: (rank for rank in (0, 1))}
    graph = from_function(lambda rank, size, round: answers[rank])
    assert [graph.gives(rank, 5, 0) for rank in range(4)] == [
        ((1, 0.5),),
        ((2, 1 / 3), (0, 1 / 3)),
        ((0, 0.2),),
        ((0, 0.5),),
    ]
    assert type(graph.out_peers(3, 5, 0)[0]) is int


def test_in_peers_of_a_function_with_a_period_are_asked_for_once():
    asked = []

    def ring(rank, size, round):
        asked.append((rank, round))
        return (rank + 1 + round % 2) % size

    graph = from_function(ring, period=2)
    for round in range(100):
        assert graph.in_peers(3, 7, round) == ((2 - round % 2),)
    assert len(asked) == 2 * 7


def test_in_peers_of_a_function_without_a_period_are_not_remembered_for_ever():
    graph = from_function(lambda rank, size, round: (rank + 1) % size)
    for round in range(5000):
        graph.in_peers(0, 256, round)
    assert len(graph.__dict__["_inverses"]) <= 1024


def test_edges_repeat_list_by_list():
    graph = from_edges([(0, 1), (1, 0)], [(1, 2)], [(2, 0, 0.9)])
    assert graph.period(3) == 3
    assert [graph.gives(2, 3, round) for round in range(5)] == [(), (), ((0, 0.9),), (), ()]
    assert graph.in_peers(0, 3, 0) == (1,)
    assert repr(graph) == "from_edges: 4 edges in 3 rounds"


@pytest.mark.parametrize(
    ("edges", "complaint"),
    [
        ([(0, 1), (0, 1)], r"round 0: the edge \(0, 1\) is listed twice"),
        ([(0, 1, 0.5), (0, 2)], "rank 0: some of its edges have a share and some have none"),
        ([(0, 1, 2, 3)], r"\(0, 1, 2, 3\) is not an edge"),
        ([(0,)], r"\(0,\) is not an edge"),
        ([(0.5, 1)], r"\(0.5, 1\) is not an edge"),
        ([(0, 1, "a")], "is not an edge"),
        ([(-1, 0)], "with ranks from 0 on"),
        ([5], "5 is not an edge"),
    ],
)
def test_edges_that_are_none_are_shown(edges, complaint):
    with pytest.raises(GraphError, match=complaint):
        from_edges(edges)


def test_edges_for_more_ranks_than_there_are_name_the_rank():
    with pytest.raises(GraphError, match="at 3 ranks: its edges name rank 4: expected 0 to 2"):
        from_edges([(0, 4), (4, 0)]).check(3)
    with pytest.raises(GraphError, match="expected a list of edges"):
        from_edges()


@pytest.mark.parametrize("size", [3, 8, 17])
def test_a_networkx_graph_keeps_its_edges(size):
    undirected = networkx.circulant_graph(size, [1, 2])
    graph = from_networkx(undirected)
    for rank in range(size):
        assert sorted(graph.out_peers(rank, size, 0)) == sorted(undirected.neighbors(rank))
        assert list(graph.in_peers(rank, size, 0)) == sorted(undirected.neighbors(rank))
    directed = networkx.DiGraph()
    directed.add_weighted_edges_from([(rank, (rank + 1) % size, 0.75) for rank in range(size)], weight="share")
    assert from_networkx(directed, share="share").gives(0, size, 0) == ((1, 0.75),)
    assert from_networkx(directed).gives(0, size, 0) == ((1, 0.5),)


def test_a_networkx_graph_with_other_names_or_without_shares_is_refused():
    with pytest.raises(GraphError, match="convert_node_labels_to_integers"):
        from_networkx(networkx.path_graph(["a", "b"]))
    with pytest.raises(GraphError, match="convert_node_labels_to_integers"):
        from_networkx(networkx.Graph([(1, 2)]))
    with pytest.raises(GraphError, match=r"the edge \(0, 1\) has no attribute 'share'"):
        from_networkx(networkx.path_graph(2), share="share")
    with pytest.raises(GraphError, match="is the rank itself"):
        from_networkx(networkx.Graph([(0, 1), (0, 0)])).check(2)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (None, "BaseK(1)"),
        (graphs.Ring(), "Ring()"),
        (lambda rank, size, round: (rank + 1) % size, "from_function(<lambda>)"),
        ([(0, 1), (1, 2), (2, 0)], "from_edges: 3 edges"),
        ([[(0, 1), (1, 0)], [(1, 2), (2, 1)]], "from_edges: 4 edges in 2 rounds"),
        (((0, 1, 0.5), (1, 2, 0.5), (2, 0, 0.5)), "from_edges: 3 edges"),
        (networkx.complete_graph(3), "from_networkx: 6 edges"),
    ],
)
def test_resolve_takes_what_stands_for_a_graph(argument, expected):
    assert repr(resolve(argument, 3)) == expected


@pytest.mark.parametrize("argument", ["ring", 5, [], {}, [1, 2], object()])
def test_resolve_refuses_what_does_not(argument):
    with pytest.raises(GraphError, match=r"expected a Graph such as graphs.OnePeerExponential\(\)"):
        resolve(argument, 4)


def test_resolve_says_that_a_class_is_not_an_instance():
    with pytest.raises(GraphError, match=r"graph=Ring is a class: expected an instance, such as Ring\(\)"):
        resolve(graphs.Ring, 4)


def test_networkx_is_not_imported_to_tell_what_is_of_networkx():
    code = (
        "import sys; from pushsum_opt import graphs; graphs.resolve(None, 5); graphs.resolve([(0, 1), (1, 0)], 2)\n"
        "print(sorted({'networkx', 'torch', 'mpi4py', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# ---------------------------------------------------------------------- any directed graph


@st.composite
def lists_of_edges(draw, connected):
    """Draw lists of edges for some rounds, with or without shares; over all of them strongly connected, or whatever."""
    size = draw(st.integers(2, 10))
    rounds = draw(st.integers(1, 4))
    ranks = st.integers(0, size - 1)
    drawn = draw(st.lists(st.tuples(ranks, ranks, st.integers(0, rounds - 1)), max_size=25))
    edges = {(source, target, round) for source, target, round in drawn if source != target}
    if connected:
        order = draw(st.permutations(range(size)))
        for source, target in zip(order, [*order[1:], order[0]], strict=True):
            edges.add((source, target, draw(st.integers(0, rounds - 1))))
    lists = [[] for _ in range(rounds)]
    for round in range(rounds):
        for source in range(size):
            targets = sorted(target for one, target, when in edges if (one, when) == (source, round))
            if draw(st.booleans()):
                parts = draw(st.lists(st.integers(1, 20), min_size=len(targets), max_size=len(targets)))
                kept = draw(st.integers(1, 20))
                total = sum(parts) + kept
                lists[round] += [(source, target, part / total) for target, part in zip(targets, parts, strict=True)]
            else:
                lists[round] += [(source, target) for target in targets]
    return size, lists


@settings(max_examples=150, deadline=None, derandomize=True)
@given(lists_of_edges(connected=True))
def test_any_connected_graph_is_accepted_and_reaches_the_weighted_mean(drawn):
    size, lists = drawn
    graph = from_edges(*lists)
    graph.check(size)
    random = np.random.default_rng(0)
    values, weights = random.normal(size=size), random.uniform(0.5, 2, size)
    mean = weights @ values / weights.sum()
    x, w = weights * values, weights.copy()
    matrices = [mixing_matrix(graph, size, round) for round in range(len(lists))]
    for matrix in matrices:
        np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-14)
    before = np.ptp(x / w)
    for round in range(600 * len(lists)):
        x, w = matrices[round % len(lists)] @ x, matrices[round % len(lists)] @ w
    assert (w > 0).all()
    assert abs(x.sum() / w.sum() - mean) < 1e-10
    assert np.ptp(x / w) <= 1e-3 * before + 1e-12


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lists_of_edges(connected=False))
def test_check_accepts_exactly_the_strongly_connected(drawn):
    size, lists = drawn
    union = networkx.DiGraph()
    union.add_nodes_from(range(size))
    union.add_edges_from(edge[:2] for edges in lists for edge in edges)
    graph = from_edges(*lists)
    if networkx.is_strongly_connected(union):
        graph.check(size)
    else:
        with pytest.raises(GraphError, match=r"rank 0 (never reaches|is never reached by) ranks? "):
            graph.check(size)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(lists_of_edges(connected=True))
def test_the_same_edges_as_a_function_are_the_same_graph(drawn):
    size, lists = drawn
    graph = from_edges(*lists)
    function = from_function(lambda rank, size, round: dict(graph.gives(rank, size, round)), period=graph.period(size))
    for round in range(len(lists) + 2):
        for rank in range(size):
            assert function.gives(rank, size, round) == graph.gives(rank, size, round)
            assert function.in_peers(rank, size, round) == graph.in_peers(rank, size, round)
    assert function.fingerprint(size) == graph.fingerprint(size)
