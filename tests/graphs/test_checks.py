"""A graph that breaks a promise is refused, and the message shows the round, the rank and the peers."""

from __future__ import annotations

import random
import sys

import pytest

from pushsum_opt import graphs
from pushsum_opt.errors import ConfigurationError, GraphError
from pushsum_opt.graphs import Graph, from_edges, from_function
from pushsum_opt.graphs.checks import declares


def ring(rank, size):
    return (rank + 1) % size


def changed(where, answer):
    """Return a graph: a ring, except that a rank answers something else in a round."""
    return from_function(lambda rank, size, round: answer if (rank, round) == where else ring(rank, size), period=4)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (8, r"round 2, rank 3 of 8: among its out-peers \(8,\), 8 is out of range: expected 0 to 7"),
        ([4, -1], r"round 2, rank 3 of 8: among its out-peers \(4, -1\), -1 is out of range"),
        (3, r"round 2, rank 3 of 8: among its out-peers \(3,\), 3 is the rank itself"),
        ([5, 4, 5], r"round 2, rank 3 of 8: its out-peers \(5, 4, 5\) name a rank twice"),
        ({4: 1.0}, r"round 2, rank 3 of 8: shares \(1.0,\) for the out-peers \(4,\) sum to 1"),
        ({4: 0.6, 5: 0.4}, r"round 2, rank 3 of 8: shares \(0.6, 0.4\) for the out-peers \(4, 5\) sum to 1"),
        ({4: 0.5, 5: 0.0}, r"round 2, rank 3 of 8: shares \(0.5, 0.0\)"),
        ({4: -0.5}, "each must be above 0 and their sum below 1"),
        ({4: float("nan")}, "each must be above 0 and their sum below 1"),
        (1.5, r"round 2, rank 3 of 8: the function returned 1.5: expected a rank, ranks, or a mapping"),
        (None, "the function returned None"),
        (["a"], r"the function returned \['a'\]"),
    ],
)
def test_one_wrong_answer_is_found_and_shown(answer, complaint):
    with pytest.raises(GraphError, match=complaint) as caught:
        changed((3, 2), answer).check(8)
    assert isinstance(caught.value, ConfigurationError)


def test_a_random_choice_is_refused_because_ranks_would_disagree():
    def chosen(rank, size, round):
        return random.choice([peer for peer in range(size) if peer != rank])

    with pytest.raises(GraphError, match=r"asked twice, it gave .* and then .*pure function"):
        from_function(chosen).check(16)


def test_in_peers_that_are_not_the_inverse_are_refused():
    class Mistaken(Graph):
        def out_peers(self, rank, size, round):
            return ((rank + 1) % size,)

        def in_peers(self, rank, size, round):
            return ((rank + 1) % size,)

    with pytest.raises(GraphError, match=r"round 0, rank \d of 5: its in-peers are \(\d,\), but rank \d sends to"):
        Mistaken().check(5)

    class Forgetful(Mistaken):
        def in_peers(self, rank, size, round):
            return () if rank == 2 else ((rank - 1) % size,)

    with pytest.raises(GraphError, match=r"rank 1 of 5: it sends to \(2,\), but the in-peers of rank 2 are \(\)"):
        Forgetful().check(5)

    class Unsorted(graphs.Complete):
        def in_peers(self, rank, size, round):
            return super().in_peers(rank, size, round)[::-1]

    with pytest.raises(GraphError, match="not ascending and distinct"):
        Unsorted().check(3)


def test_shares_for_other_peers_are_refused():
    class Uneven(graphs.Ring):
        def shares(self, rank, size, round):
            return (0.25, 0.25)

    with pytest.raises(GraphError, match=r"2 shares \(0.25, 0.25\) for the out-peers \(\d,\): expected one each"):
        Uneven().check(4)


def test_a_list_instead_of_a_tuple_is_refused():
    class Listed(Graph):
        def out_peers(self, rank, size, round):
            return [ring(rank, size)]

    with pytest.raises(GraphError, match=r"out_peers is \[\d\]: expected a tuple"):
        Listed().check(4)

    class Truthful(Graph):
        def out_peers(self, rank, size, round):
            return (rank == 0,)

    with pytest.raises(GraphError, match="True is a bool: expected an int"):
        Truthful().check(2)


@pytest.mark.parametrize(
    ("edges", "complaint"),
    [
        ([(0, 1), (1, 0), (2, 3), (3, 2)], "rank 0 never reaches ranks 2, 3"),
        ([(0, 1), (1, 0), (2, 0)], r"rank 0 never reaches rank 2 \(rank 0 sends to 1, rank 2 to 0\)"),
        ([(0, 1), (1, 2)], r"rank 0 is never reached by ranks 1, 2 \(rank 0 sends to 1, rank 1 to 2\)"),
    ],
)
def test_ranks_that_are_not_connected_are_named(edges, complaint):
    with pytest.raises(GraphError, match=complaint):
        from_edges(edges).check(1 + max(map(max, edges)))


def test_it_is_enough_to_be_connected_over_a_period():
    from_edges([(0, 1)], [(1, 2)], [(2, 0)]).check(3)
    with pytest.raises(GraphError, match="over rounds 0 to 1 of 3 ranks"):
        from_edges([(0, 1)], [(1, 2)]).check(3)


def test_one_rank_at_a_time_is_connected_though_it_takes_long():
    """The token goes round: of 60 ranks one sends in each round, and no period is given."""
    from_function(lambda rank, size, round: [ring(rank, size)] if rank == round % size else []).check(60)


def test_a_graph_that_never_connects_advises_to_give_its_period():
    with pytest.raises(GraphError, match="or give its period if that is longer"):
        from_function(lambda rank, size, round: [rank ^ 1] if rank ^ 1 < size else []).check(8)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_size_must_be_a_number_of_ranks(size):
    with pytest.raises(GraphError, match="expected a whole number of ranks, at least 1"):
        graphs.Ring().check(size)


def test_a_period_must_be_a_number_of_rounds():
    class Timeless(graphs.Ring):
        def period(self, size):
            return 0

    with pytest.raises(GraphError, match=r"period\(4\) is 0"):
        Timeless().check(4)
    with pytest.raises(GraphError, match="expected a number of rounds"):
        from_function(ring, period=0)


def test_every_graph_is_valid_with_one_rank_even_one_that_cannot_be_asked():
    graph = from_function(lambda rank, size, round: 1 / 0)
    graph.check(1)
    assert graph.gives(0, 1, 5) == graph.in_peers(0, 1, 5) == graph.out_peers(0, 1, 5) == ()
    assert graph.partners(0, 1) == frozenset()
    graph.fingerprint(1)
    from_edges([(0, 1), (1, 0)]).check(1)


def test_an_answer_that_check_did_not_sample_is_still_refused_when_it_is_used():
    graph = changed((3, 2), 9)
    assert graph.in_peers(1, 8, 1) == (0,)
    with pytest.raises(GraphError, match="round 2, rank 3 of 8: among its out-peers"):
        graph.in_peers(1, 8, 2)


def test_a_subclass_that_changes_a_rule_proves_it_anew():
    class Broken(graphs.OnePeerExponential):
        def out_peers(self, rank, size, round):
            return ((rank + 2) % size,)

    assert declares(graphs.OnePeerExponential(), "promises_proven")
    assert not declares(Broken(), "promises_proven")
    with pytest.raises(GraphError):
        Broken().check(8)


def test_ranks_and_rounds_are_part_of_a_fingerprint_where_all_answers_are_the_same():
    class Nobody(Graph):
        def __init__(self, rounds):
            self.rounds = rounds

        def out_peers(self, rank, size, round):
            return ()

        def period(self, size):
            return self.rounds

    digests = {Nobody(rounds).fingerprint(size) for rounds, size in ((3, 4), (4, 3), (2, 6), (6, 2))}
    assert len(digests) == 4


@pytest.mark.parametrize("graph", graphs.families(256), ids=repr)
@pytest.mark.parametrize("size", [256, 4096])
def test_construction_asks_so_many_questions_at_any_number_of_ranks(graph, size, monkeypatch):
    asked = []
    for kind in {type(graph), *(type(part) for part, _ in graph.parts(size))}:

        def counted(self, rank, size, round, plain=kind.out_peers):
            asked.append(rank)
            return plain(self, rank, size, round)

        monkeypatch.setattr(kind, "out_peers", counted)
    graph.check(size)
    graph.fingerprint(size)
    assert 0 < len(asked) < 1 << 14


@pytest.mark.parametrize(
    "family", [graph for graph in graphs.families(64) if not isinstance(graph, (graphs.Complete, graphs.Star))]
)
def test_a_round_costs_the_same_at_any_number_of_ranks(family):
    """Counted in function calls: the peers of one rank need no work that grows with the number of ranks."""
    calls = {}
    for size in (64, 4096):
        count = 0

        def counted(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        for round in range(20):  # plans that are made once
            family.gives(7, size, round)
            family.in_peers(7, size, round)
        sys.setprofile(counted)
        try:
            for round in range(20, 60):
                family.gives(7, size, round)
                family.in_peers(7, size, round)
        finally:
            sys.setprofile(None)
        calls[size] = count / 40
    assert calls[4096] <= 2 * calls[64] + 10
