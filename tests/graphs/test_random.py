"""Random graphs: the same on every rank, and distributed as they say."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from pushsum_opt import graphs
from pushsum_opt.errors import GraphError
from pushsum_opt.graphs.random_matching import _keys, _permute, _restore
from pushsum_opt.graphs.randomness import below, distinct, scramble
from pushsum_opt.mixing import mixing_matrix, second_singular_value

ROUNDS = 3000


def chi_squared(counts, expected):
    """Return the statistic per degree of freedom: about 1 where the counts are fair."""
    return sum((count - expected) ** 2 / expected for count in counts) / (len(counts) - 1)


@pytest.mark.parametrize("size", [2, 3, 5, 17, 18, 40])
def test_random_peer_draws_every_other_rank_as_often(size):
    for graph in (graphs.RandomPeer(), graphs.EquiDyn()):
        counts = Counter(graph.out_peers(1, size, round)[0] for round in range(ROUNDS))
        assert sorted(counts) == [rank for rank in range(size) if rank != 1]
        if size > 2:
            assert chi_squared(counts.values(), ROUNDS / (size - 1)) < 1.8


@pytest.mark.parametrize("size", [5, 17])
def test_up_to_17_ranks_random_peers_are_independent(size):
    """Every pair of choices of two ranks comes as often."""
    graph = graphs.RandomPeer(seed=3)
    pairs = Counter((graph.out_peers(0, size, k), graph.out_peers(2, size, k)) for k in range(8 * ROUNDS))
    assert len(pairs) == (size - 1) ** 2
    assert chi_squared(pairs.values(), 8 * ROUNDS / (size - 1) ** 2) < 1.5


@pytest.mark.parametrize("size", [18, 100, 1000])
def test_random_peers_have_binomial_in_degrees(size):
    degrees = [len(graphs.RandomPeer().in_peers(4, size, round)) for round in range(ROUNDS)]
    assert np.mean(degrees) == pytest.approx(1, abs=0.06)
    assert np.var(degrees) == pytest.approx(15 / 16, abs=0.1)
    assert np.mean(np.equal(degrees, 0)) == pytest.approx((15 / 16) ** 16, abs=0.03)


def test_random_peer_mixes_as_independent_draws_do():
    """Assran et al. 2019, appendix A: random choice among all leaves 0.2 of the variance after 5 rounds at n = 32."""
    left = [second_singular_value(graphs.RandomPeer(seed), 32, rounds=5) ** 2 for seed in range(100)]
    assert np.mean(left) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("size", [2, 3, 6, 7, 33, 64])
def test_random_matching_pairs_all_ranks_and_rests_one_where_their_number_is_odd(size):
    resting = Counter()
    for round in range(300):
        idle = [rank for rank in range(size) if not graphs.RandomMatching().out_peers(rank, size, round)]
        assert len(idle) == size % 2
        resting.update(idle)
        matrix = mixing_matrix(graphs.RandomMatching(), size, round)
        np.testing.assert_array_equal(matrix, matrix.T)
    assert len(resting) in (0, size), "everybody rests in turn"


@pytest.mark.parametrize(("size", "matchings"), [(4, 3), (6, 15), (8, 105)])
def test_every_matching_is_as_likely(size, matchings):
    graph = graphs.RandomMatching(seed=2)
    seen = Counter(tuple(graph.out_peers(rank, size, round)[0] for rank in range(size)) for round in range(ROUNDS))
    assert len(seen) == matchings
    assert chi_squared(seen.values(), ROUNDS / matchings) < 2.0


@pytest.mark.parametrize("size", [2, 3, 4, 5, 10, 16, 17, 97])
def test_the_order_behind_a_matching_is_a_permutation_that_can_be_undone(size):
    for round in range(20):
        keys = _keys(7, round, 8)
        places = [_permute(rank, size, keys) for rank in range(size)]
        assert sorted(places) == list(range(size))
        assert [_restore(place, size, keys) for place in places] == list(range(size))


def test_every_order_of_four_ranks_comes_up():
    seen = Counter(tuple(_permute(rank, 4, _keys(0, round, 20)) for rank in range(4)) for round in range(ROUNDS))
    assert set(seen) == set(permutations(range(4)))


def test_another_seed_is_another_graph_and_the_same_seed_is_the_same():
    for family in (graphs.RandomPeer, graphs.RandomMatching, graphs.EquiDyn):
        assert family(1).fingerprint(20) == family(1).fingerprint(20) != family(2).fingerprint(20)


@pytest.mark.parametrize("eta", [0, 1, -0.5, float("nan")])
def test_eta_must_lie_between_0_and_1(eta):
    with pytest.raises(GraphError, match="expected a number between 0 and 1"):
        graphs.EquiDyn(eta=eta)


@pytest.mark.parametrize(("size", "eta"), [(8, 0.5), (17, 0.53), (32, 0.3)])
def test_equi_dyn_contracts_as_in_its_paper(size, eta):
    """In the mean over distances, the square of any disagreement falls by 1 - 2 eta (1 - eta (n - 1) / n)."""
    share = eta * (size - 1) / size
    mean = np.zeros((size, size))
    for distance in range(1, size):
        matrix = (1 - share) * np.eye(size) + share * np.roll(np.eye(size), distance, axis=0)
        mean += matrix.T @ matrix / (size - 1)
    eigenvalues = np.linalg.eigvalsh(mean)
    np.testing.assert_allclose(eigenvalues[:-1], 1 - 2 * eta * (1 - eta * (size - 1) / size), atol=1e-12)
    assert graphs.EquiDyn(eta=eta).shares(0, size, 0) == (share,)


def test_words_give_the_same_bits_everywhere():
    assert scramble(0) == 16294208416658607535
    assert scramble(1, 2) == 13608149317741381227
    assert scramble(-1) == 16490336266968443936
    assert below(10, 5, 5) in range(10)


@pytest.mark.parametrize(("count", "bound"), [(0, 5), (3, 3), (2, 9), (16, 4095)])
def test_distinct_numbers_are_distinct_and_in_range(count, bound):
    for state in range(200):
        drawn = distinct(count, bound, scramble(state))
        assert len(set(drawn)) == count
        assert all(0 <= one < bound for one in drawn)
        assert list(drawn) == sorted(drawn)
