"""Properties of synchronous rounds over every graph: mass, coverage, order, memory, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scenarios import numpy_training, shift

import pushsum_opt as ps
from pushsum_opt.errors import ClosedError, MismatchError, NonFiniteError
from pushsum_opt.gossip.wire import HEADER_BYTES
from pushsum_opt.graphs import Complete, OnePeerExponential, Ring
from pushsum_opt.mixing import mixing_matrix
from pushsum_opt.observe.events import Listener

GRAPHS = [OnePeerExponential(), Ring(), Complete(), ps.graphs.from_function(shift)]


@pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.SlowMixingWarning")
@pytest.mark.parametrize("graph", GRAPHS, ids=repr)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 16, 33])
def test_a_round_is_the_mixing_matrix_applied_to_every_element(graph, size):
    """Element by element, for tensors that are packed, sent in place and cut; and no mass is made or lost."""
    start = np.random.default_rng(size).normal(size=(size, 3000))

    def rank(comm):
        z = start[comm.rank].copy()
        pieces = {"a": z[:1], "b": z[1:90].reshape(89), "c": z[90:2490].reshape(60, 40), "d": z[2490:]}
        seen = []
        with ps.PushSum(pieces, graph=graph, comm=comm) as push_sum:
            for _ in range(4):
                push_sum.mix()
                seen.append((z.copy(), push_sum.push_weight))
        return seen

    x, w = start.copy(), np.ones(size)
    results = ps.testing.run(size, rank)
    for k in range(4):
        matrix = mixing_matrix(graph, size, k)
        x, w = matrix @ x, matrix @ w
        np.testing.assert_allclose([path[k][1] for path in results], w, rtol=1e-13)
        np.testing.assert_allclose([path[k][0] for path in results], x / w[:, None], rtol=1e-12, atol=1e-13)
        assert sum(path[k][1] for path in results) == pytest.approx(size, rel=1e-14)


@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(1, 9),
    seed=st.integers(0, 1000),
    chunk_bytes=st.sampled_from([64, 256, 4096, 1 << 22]),
    lengths=st.lists(st.integers(0, 700), min_size=1, max_size=5),
)
def test_late_and_reordered_messages_change_no_bit(size, seed, chunk_bytes, lengths):
    def rank(comm):
        tensors = [np.random.default_rng([comm.rank, index]).normal(size=n) for index, n in enumerate(lengths)]
        with ps.PushSum(tensors, graph=shift, comm=comm) as push_sum:
            for _ in range(4):
                push_sum.mix()
            return b"".join(tensor.tobytes() for tensor in tensors), push_sum.push_weight

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUSHSUM_CHUNK_BYTES", str(chunk_bytes))
        late = ps.testing.run(size, rank, seed=seed, spread=1e-3)
        assert late == ps.testing.run(size, rank)
    assert sum(weight for _, weight in late) == pytest.approx(size, rel=1e-13)


def test_a_training_with_uneven_data_has_equal_bits_under_any_delay():
    assert ps.testing.run(6, numpy_training) == ps.testing.run(6, numpy_training, seed=5)


@pytest.mark.parametrize("size", [3, 9, 33])
def test_more_in_peers_than_slabs_cannot_lock_up(size, monkeypatch):
    """Every rank has n - 1 in-peers and few slabs: sends go through slabs of their own then."""
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "4096")
    start = np.random.default_rng(1).normal(size=(size, 6000))

    def rank(comm):
        z = start[comm.rank].copy()
        with ps.PushSum([z], graph=Complete(), comm=comm) as push_sum:
            push_sum.mix()
        return z

    for z in ps.testing.run(size, rank, seed=1):
        np.testing.assert_allclose(z, start.mean(0), atol=1e-14)


def test_large_parameters_are_sent_from_where_they_lie():
    """One in-peer: beside the parameters, only the window of slabs is held."""

    def rank(comm):
        z = np.zeros(16 << 20)  # 128 MiB
        with ps.PushSum([z], graph=Ring(), comm=comm) as push_sum:
            push_sum.mix()
            return push_sum.stats()["extra_bytes"] / z.nbytes

    assert max(ps.testing.run(2, rank)) <= 0.15


@pytest.mark.parametrize("count", [1, 30, 1000])
def test_memory_beside_packed_parameters_is_at_most_twice_theirs(count):
    def rank(comm):
        tensors = [np.zeros(500) for _ in range(count)]
        with ps.PushSum(tensors, graph=Ring(), comm=comm) as push_sum:
            push_sum.mix()
            return push_sum.stats()["extra_bytes"] / (count * 4000)

    assert max(ps.testing.run(2, rank)) <= 2.0


def test_statistics_count_bytes_rounds_and_the_age_of_the_quietest_peer():
    def rank(comm):
        z = np.zeros(100)
        with ps.PushSum([z], graph=OnePeerExponential(), comm=comm) as push_sum:
            ages = []
            for _ in range(6):
                push_sum.mix()
                ages.append(push_sum.stats()["worst_age"])
            return push_sum.stats(), ages

    for stats, ages in ps.testing.run(8, rank):
        assert stats["round"] == 6.0
        assert stats["push_weight"] == 1.0
        assert stats["bytes_sent"] == 6 * (800 + HEADER_BYTES)
        assert stats["seconds_waited"] >= 0.0
        assert ages == [0, 1, 2, 2, 2, 2], "three in-peers take turns"
        assert all(type(value) is float for value in stats.values())


def test_a_listener_sees_every_point_of_a_round_in_order():
    class Notes(Listener):
        def __init__(self):
            self.seen = []

        def round_begins(self, round):
            self.seen.append(("begins", round))

        def message_posted(self, round, peer, nbytes, mass):
            self.seen.append(("posted", round, peer))

        def message_merged(self, round, peer, age):
            self.seen.append(("merged", round, peer, age))

        def round_ends(self, round, push_weight):
            self.seen.append(("ends", round, push_weight))

    def rank(comm):
        notes = Notes()
        with ps.PushSum([np.zeros(3)], graph=Ring(), comm=comm) as push_sum:
            push_sum.subscribe(notes)
            push_sum.mix()
        return notes.seen

    assert ps.testing.run(3, rank)[0] == [
        ("begins", 0),
        ("posted", 0, 1),
        ("merged", 0, 2, 0),
        ("ends", 0, 1.0),
    ]


def test_ranks_that_count_rounds_differently_are_told_so():
    def rank(comm):
        push_sum = ps.PushSum([np.zeros(3)], graph=Ring(), comm=comm)
        if comm.rank == 0:
            push_sum.load_state({**push_sum.state(), "round": 16})  # the same tag as round 0
        push_sum.mix()

    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(2, rank)
    assert any(isinstance(error, MismatchError) for error in caught.value.errors.values())
    assert "count rounds differently" in str(caught.value)


def test_a_message_that_is_not_finite_is_refused_before_it_is_merged_and_ends_the_exchange():
    def rank(comm):
        z = np.full(2000, np.nan if comm.rank == 1 else 1.0)
        push_sum = ps.PushSum({"weight": z}, graph=Ring(), comm=comm)
        with pytest.raises(NonFiniteError, match="message of rank 1 in round 0 holds inf or nan in weight"):
            push_sum.mix()
        assert np.isfinite(z).all()
        with pytest.raises(ClosedError, match="an earlier error ended the exchange"):
            push_sum.mix()

    def other(comm):
        return rank(comm) if comm.rank == 2 else _mix_until_failure(comm)

    ps.testing.run(3, other)


def _mix_until_failure(comm):
    z = np.full(2000, np.nan if comm.rank == 1 else 1.0)
    push_sum = ps.PushSum({"weight": z}, graph=Ring(), comm=comm)
    with pytest.raises(ps.PushSumError):
        for _ in range(3):
            push_sum.mix()


def test_values_near_the_largest_float_are_not_mistaken_for_inf():
    def rank(comm):
        z = np.full(5000, 1e38 * (1 + comm.rank), np.float32)  # their sum overflows, none of them is inf
        with ps.PushSum([z], graph=Ring(), comm=comm) as push_sum:
            push_sum.mix()
        return z[0]

    assert ps.testing.run(2, rank) == [pytest.approx(1.5e38)] * 2


def test_skip_keeps_the_mass_and_heals_a_poisoned_rank():
    def rank(comm):
        z = np.full(3000, np.nan if comm.rank == 1 else float(comm.rank))
        with ps.PushSum([z], graph=OnePeerExponential(), nonfinite="skip", comm=comm) as push_sum:
            for _ in range(12):
                push_sum.mix()
            return z, push_sum.push_weight, push_sum.stats()["chunks_skipped"]

    results = ps.testing.run(8, rank)
    assert sum(weight for _, weight, _ in results) == pytest.approx(8, rel=1e-13)
    assert sum(skipped for *_, skipped in results) >= 1
    for z, _, _ in results:
        assert np.isfinite(z).all()
        np.testing.assert_allclose(z, results[0][0], rtol=1e-3)
