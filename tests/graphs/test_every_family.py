"""What every graph promises, at every size."""

from __future__ import annotations

import copy

import networkx
import numpy as np
import pytest
from graphs.every import SIZES, every_graph, looked_at

from pushsum_opt import graphs
from pushsum_opt.graphs import Graph
from pushsum_opt.graphs.checks import declares
from pushsum_opt.mixing import analyse, mixing_matrix

pytestmark = pytest.mark.parametrize("size", SIZES)


def test_out_peers_are_distinct_ranks_other_than_the_rank_itself(size):
    for graph in every_graph(size):
        for round in looked_at(graph, size):
            for rank in range(size):
                peers = graph.out_peers(rank, size, round)
                assert isinstance(peers, tuple)
                assert len(set(peers)) == len(peers)
                assert rank not in peers
                assert all(type(peer) is int and 0 <= peer < size for peer in peers), (graph, round, rank, peers)
                assert size > 1 or peers == ()


def test_in_peers_are_the_ranks_that_name_it_as_out_peer(size):
    for graph in every_graph(size):
        for round in looked_at(graph, size):
            senders = [[] for _ in range(size)]
            for sender in range(size):
                for rank in graph.out_peers(sender, size, round):
                    senders[rank].append(sender)
            for rank in range(size):
                assert graph.in_peers(rank, size, round) == tuple(senders[rank]), (graph, round, rank)


def test_gives_pairs_the_peers_with_shares_that_leave_mass_in_the_column(size):
    for graph in every_graph(size):
        for round in looked_at(graph, size):
            for rank in range(size):
                peers, shares = graph.out_peers(rank, size, round), graph.shares(rank, size, round)
                assert graph.gives(rank, size, round) == tuple(zip(peers, shares, strict=True))
                assert all(0 < share < 1 for share in shares)
                assert sum(shares) < 1
            matrix = mixing_matrix(graph, size, round)
            np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=0, atol=1e-15 * size)
            assert (matrix >= 0).all()
            assert (np.diag(matrix) > 0).all()


def test_it_repeats_after_its_period(size):
    for graph in every_graph(size):
        period = graph.period(size)
        if period is None:
            continue
        assert period >= 1
        assert graph.window(size) == period
        for round in looked_at(graph, size):
            for rank in range(size):
                assert graph.gives(rank, size, round + 5 * period) == graph.gives(rank, size, round)


def test_it_is_strongly_connected_over_its_window(size):
    for graph in every_graph(size):
        union = networkx.DiGraph()
        union.add_nodes_from(range(size))
        begin = graph.ends[-1] if isinstance(graph, graphs.Schedule) else 0  # the graph that stays
        for round in range(begin, begin + graph.window(size)):
            union.add_edges_from((rank, peer) for rank in range(size) for peer in graph.out_peers(rank, size, round))
        assert networkx.is_strongly_connected(union), graph


def test_check_accepts_it_and_says_nothing_of_those_known_to_be_fast(size):
    for graph in every_graph(size):
        if declares(graph, "mixes_fast"):
            assert graphs.resolve(graph, size) is graph  # which checks it
        else:
            graph.check(size)


def test_declared_symmetry_leaves_every_round_as_it_is(size):
    for graph in every_graph(size):
        shape = graph.symmetry(size)
        if shape is None or size == 1:
            continue
        assert np.prod(shape, dtype=int) == size
        for round in looked_at(graph, size):
            matrix = mixing_matrix(graph, size, round).reshape(*shape, *shape)
            for axis in range(len(shape)):
                shifted = np.roll(np.roll(matrix, 1, axis), 1, axis + len(shape))
                np.testing.assert_array_equal(shifted, matrix, err_msg=f"{graph!r} round {round} axis {axis}")


def test_families_said_to_mix_fast_do(size):
    """Nobody is warned of them, so they reach 1e-2 within 10 times the rounds of the best one-peer graph."""
    best = graphs.default(size).period(size)
    for graph in every_graph(size):
        if declares(graph, "mixes_fast"):
            rounds = analyse(graph, size).rounds_to(1e-2)
            assert rounds is not None
            assert rounds <= 10 * best, graph


def test_partners_are_all_ranks_that_it_ever_exchanges_with(size):
    for graph in every_graph(size):
        for rank in range(0, size, 1 + size // 4):
            partners = graph.partners(rank, size)
            assert rank not in partners
            for round in looked_at(graph, size):
                assert set(graph.out_peers(rank, size, round)) <= partners
                assert set(graph.in_peers(rank, size, round)) <= partners


def test_answers_do_not_depend_on_what_was_asked_before(size):
    for graph in every_graph(size):
        fresh = copy.deepcopy(graph)
        backwards = [(round, rank) for round in looked_at(graph, size) for rank in range(0, size, 1 + size // 6)][::-1]
        for round, rank in backwards:
            graph.gives(rank, size + 0, round), graph.in_peers(rank, size, round)
        for round, rank in reversed(backwards):
            assert fresh.gives(rank, size, round) == graph.gives(rank, size, round)
            assert fresh.in_peers(rank, size, round) == graph.in_peers(rank, size, round)


def test_fingerprints_agree_for_equal_graphs_only(size):
    seen: dict[str, Graph] = {}
    for graph in every_graph(size):
        digest = graph.fingerprint(size)
        assert copy.deepcopy(graph).fingerprint(size) == digest
        if digest in seen:
            other = seen[digest]
            rounds = range(max(graph.window(size), other.window(size)))
            for round in rounds:
                for rank in range(size):
                    assert set(graph.gives(rank, size, round)) == set(other.gives(rank, size, round)), (graph, other)
        seen[digest] = graph
