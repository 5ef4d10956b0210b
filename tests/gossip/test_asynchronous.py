"""Free running: nobody waits, ranks differ in speed and in number of steps, and no mass is lost."""

from __future__ import annotations

import re
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scenarios import shift

import pushsum_opt as ps
from pushsum_opt.collectives import averaged
from pushsum_opt.errors import CallOrderError, ConfigurationError, MismatchError, PeerFailed, PeerFinished
from pushsum_opt.gossip import asynchronous
from pushsum_opt.gossip.pace import Pace
from pushsum_opt.graphs import Complete, OnePeerExponential, Ring
from pushsum_opt.transport import LoopbackTransport


def until(condition, seconds=60.0):
    """Wait, while messages move, until something is so."""
    pause, end = threading.Event(), time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        pause.wait(1e-3)


def header_is_here(push_sum):
    """Tell whether a peer's header has come, and has not been accepted."""
    listening = push_sum.member.mode._listening
    return listening is not None and listening.ticket.done


def free_run(comm, steps, naps, graph=shift, rate=0.0, centre=0.0, **options):
    """Run ``steps(rank)`` steps with random naps; return the numerator and weight after close, and the least weight."""
    random = np.random.default_rng([1, comm.rank])
    z = np.random.default_rng(comm.rank).normal(size=40)
    moved = np.zeros(40)
    push_sum = ps.PushSum([z], graph=graph, staleness="unbounded", comm=comm, **options)
    least = push_sum.push_weight
    for _ in range(steps(comm.rank)):
        time.sleep(random.uniform(0, naps(comm.rank)))
        before, weight = z.copy(), push_sum.push_weight
        with push_sum.local_step():
            z -= rate * (z - centre)
        moved += weight * (z - before)
        push_sum.mix()
        least = min(least, push_sum.push_weight / push_sum.initial_weight)
    push_sum.close()
    return push_sum.push_weight * z, push_sum.push_weight, least, moved


@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(1, 7),
    seed=st.integers(0, 50),
    steps=st.lists(st.integers(0, 25), min_size=7, max_size=7),
    rate=st.sampled_from([0.0, 0.1]),
)
def test_mass_is_conserved_whatever_the_delays_speeds_and_numbers_of_steps(size, seed, steps, rate):
    results = ps.testing.run(
        size, lambda comm: free_run(comm, steps.__getitem__, lambda rank: 0.002 * (rank % 3), rate=rate), seed=seed
    )
    start = sum(np.random.default_rng(rank).normal(size=40) for rank in range(size))
    assert sum(weight for _, weight, *_ in results) == pytest.approx(size, rel=1e-12)
    total = sum(x for x, *_ in results)
    np.testing.assert_allclose(total, start + sum(moved for *_, moved in results), rtol=0, atol=1e-11)
    assert all(least >= 0.5 - 1e-12 for _, _, least, _ in results), "no give leaves less than half of a"


@pytest.mark.parametrize(
    "graph", [Ring(), OnePeerExponential(), Complete(), shift], ids=["ring", "one peer", "complete", "shift"]
)
def test_ranks_come_together(graph):
    def rank(comm):
        z = np.full(3, float(comm.rank))
        with ps.PushSum([z], graph=graph, staleness="unbounded", comm=comm) as push_sum:
            for _ in range(300):
                for _ in range(5):
                    push_sum.mix()
                push_sum.drain()
                if ps.consensus_distance(push_sum) < 1e-9:
                    break
        return z

    np.testing.assert_allclose(ps.testing.run(5, rank), 2.0, atol=1e-8)


def test_draining_goes_on_where_sends_end_between_two_looks(monkeypatch):
    """A thread may end the last one after drain() has looked which are done, and before it asks what is left."""

    def rank(comm):
        z = np.full(3, float(comm.rank))
        with ps.PushSum([z], graph=Ring(), staleness="unbounded", comm=comm) as push_sum:
            push_sum.mix()
            push_sum.transport.poll(0.1)
            monkeypatch.setattr(asynchronous.AsynchronousMode, "_free_sent_slabs", lambda gossip: None)
            push_sum.drain()
            return push_sum.push_weight

    assert sum(ps.testing.run(2, rank)) == pytest.approx(2)


def test_a_step_never_waits_for_a_peer_that_stands_still():
    """Rank 1 stands in the middle until rank 0 has taken all its steps."""
    all_taken = threading.Event()

    def rank(comm):
        z = np.zeros(200_000)
        with ps.PushSum([z], graph=Ring(), staleness="unbounded", comm=comm) as push_sum:
            for k in range(30):
                if comm.rank == 1 and k == 10:
                    assert all_taken.wait(60.0), "rank 0 has waited for rank 1"
                push_sum.mix()
            if comm.rank == 0:
                all_taken.set()

    ps.testing.run(2, rank)


def test_a_message_comes_whole_while_its_receiver_computes():
    """The receiver's next round merges it: it does not first have to agree to take it."""
    seen = threading.Event()

    def rank(comm):
        with ps.PushSum([np.zeros(40)], graph=Ring(), staleness="unbounded", comm=comm) as push_sum:
            if comm.rank == 1:
                push_sum.mix()
                assert seen.wait(60.0), "it would give rank 0 the rest of the message only when it is called again"
            else:
                until(lambda: push_sum.stats()["in_flight"] == 1.0)
                seen.set()

    ps.testing.run(2, rank)


def test_all_that_is_here_is_merged_in_one_round_without_a_thread_too(monkeypatch):
    """Two headers, each to be opened before its chunks can come."""
    monkeypatch.setattr(LoopbackTransport, "threaded", False)

    def to_rank_0(rank, size, round):
        return (0,) if rank else (1, 2)

    in_step = threading.Barrier(3, timeout=60.0)

    def rank(comm):
        with ps.PushSum([np.zeros(4)], graph=to_rank_0, staleness="unbounded", comm=comm) as push_sum:
            if comm.rank == 0:
                in_step.wait()  # both have given
            push_sum.mix()
            if comm.rank != 0:
                in_step.wait()
            weight = push_sum.push_weight
            in_step.wait()  # nobody closes before
        return weight

    assert ps.testing.run(3, rank)[0] == pytest.approx(1 - 0.4 + 2 / 3)


def test_a_full_pool_has_a_place_again_in_the_round_that_merges(monkeypatch):
    """Without a thread: nobody else would listen before the next round, and until then its senders would be stuck."""
    monkeypatch.setattr(asynchronous, "MOST_ARRIVING", 1)
    monkeypatch.setattr(LoopbackTransport, "threaded", False)
    in_step = threading.Barrier(2, timeout=60.0)

    def rank(comm):
        with ps.PushSum([np.zeros(40)], graph=Ring(), staleness="unbounded", comm=comm) as push_sum:
            merged = 0
            for _ in range(200):
                before = push_sum.push_weight
                push_sum.mix()
                if push_sum.push_weight > before:
                    merged += 1
                    gossip = push_sum.member.mode
                    assert gossip._listening is not None or gossip._arriving, "a place, or the next message in it"
                in_step.wait()
        return merged

    assert min(ps.testing.run(2, rank)) > 0


def test_new_strides_after_a_drain_reach_a_rank_that_still_has_the_old_ones_without_harm():
    """The message waits until this rank has them too."""
    given = threading.Event()

    def rank(comm):
        z = torch.full((2, 3, 4, 5), float(comm.rank))
        with ps.PushSum([z], graph=Ring(), staleness="unbounded", comm=comm) as push_sum:
            for _ in range(3):
                push_sum.mix()
            push_sum.drain()
            if comm.rank == 1:
                assert given.wait(60.0)
                until(lambda: header_is_here(push_sum))
            z.data = z.data.to(memory_format=torch.channels_last)
            for _ in range(3):
                push_sum.mix()
                given.set()
            push_sum.drain()
            return push_sum.push_weight * z.mean().item(), push_sum.push_weight

    numerators, weights = zip(*ps.testing.run(2, rank), strict=True)
    assert sum(numerators) == pytest.approx(1.0, rel=1e-6)
    assert sum(weights) == pytest.approx(2.0, rel=1e-12)


def test_strides_that_only_one_rank_has_are_refused_on_both():
    def rank(comm):
        z = torch.full((2, 3, 4, 5), float(comm.rank))
        push_sum = ps.PushSum([z], graph=Ring(), staleness="unbounded", timeout=20.0, comm=comm)
        if comm.rank == 0:
            z.data = z.data.to(memory_format=torch.channels_last)
        else:
            until(lambda: header_is_here(push_sum))
        with pytest.raises((MismatchError, PeerFailed), match="strides") as caught:
            while True:
                push_sum.mix()
        push_sum.close()
        return caught.type

    assert ps.testing.run(2, rank) == [PeerFailed, MismatchError]


def test_a_round_gives_before_it_merges_so_that_the_next_step_is_taken_with_what_has_come():
    done = threading.Event()

    def rank(comm):
        with ps.PushSum([np.zeros(40)], graph=Ring(), staleness="unbounded", comm=comm) as push_sum:
            if comm.rank == 1:
                push_sum.mix()
                assert done.wait(60.0)
                return push_sum.push_weight
            until(lambda: push_sum.stats()["in_flight"] == 1.0)
            push_sum.mix()
            done.set()
            return push_sum.push_weight

    # Rank 0 gives a third of its 1 and then merges a third; merged first, two thirds of 4 / 3 would be left.
    assert ps.testing.run(2, rank) == pytest.approx([1.0, 2 / 3], rel=1e-15)


def has_heard_of_rank_0(push_sum):
    push_sum.transport.poll(0.0)
    push_sum.member.place.channel.hear()
    return 0 in push_sum.member.place.channel.finished


def test_nobody_gives_to_a_rank_that_has_finished():
    """Rank 0 leaves at once; the others go on when they have heard it, and its mass stays what it was."""

    def rank(comm):
        z = np.zeros(4)
        push_sum = ps.PushSum([z], graph=Complete(), staleness="unbounded", comm=comm)
        if comm.rank != 0:
            until(lambda: has_heard_of_rank_0(push_sum))
            for _ in range(300):
                push_sum.mix()
        push_sum.close()
        return push_sum.push_weight

    weights = ps.testing.run(4, rank)
    assert sum(weights) == pytest.approx(4, rel=1e-12)
    assert weights[0] == 1.0, "without the notice the others would end with half a unit each, and it with 2.5"


def test_drain_brings_all_mass_home_and_training_goes_on():
    def rank(comm):
        z = np.full(10, float(comm.rank))
        weights = []
        with ps.PushSum([z], graph=shift, staleness="unbounded", comm=comm) as push_sum:
            for _ in range(4):
                for _ in range(10):
                    push_sum.mix()
                push_sum.drain()
                weights.append(push_sum.push_weight)
        return weights

    for drained in zip(*ps.testing.run(5, rank, seed=2), strict=True):
        assert sum(drained) == pytest.approx(5, rel=1e-13)


def test_averaged_holds_the_exact_mean_and_puts_back_what_was_there():
    def rank(comm):
        z = np.full(10, float(comm.rank))
        with ps.PushSum([z], graph=shift, staleness="unbounded", comm=comm) as push_sum:
            for _ in range(20):
                push_sum.mix()
            with averaged(push_sum):
                mean = z.copy()
        return mean

    np.testing.assert_allclose(ps.testing.run(5, rank, seed=4), 2.0, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_averaged_keeps_the_mass_of_what_it_brought_home(seed):
    """The values of a message must stay with its mass: sum of w z is the same before and after, as sum of w is."""

    def rank(comm):
        z = np.full(10, float(comm.rank))
        with ps.PushSum([z], graph=shift, staleness="unbounded", comm=comm) as push_sum:
            for _ in range(3):
                for _ in range(7):
                    push_sum.mix()
                with averaged(push_sum):
                    mean = z.copy()
                np.testing.assert_allclose(mean, 2.0, atol=1e-13)
        return push_sum.push_weight, push_sum.push_weight * z

    weights, numerators = zip(*ps.testing.run(5, rank, seed=seed, spread=5e-3), strict=True)
    assert sum(weights) == pytest.approx(5, rel=1e-13)
    np.testing.assert_allclose(sum(numerators), 10.0, rtol=1e-13)


def test_drain_inside_averaged_is_refused_for_it_would_merge_into_the_average():
    def rank(comm):
        with ps.PushSum([np.zeros(3)], staleness=1, comm=comm) as push_sum:
            push_sum.mix()
            with averaged(push_sum), pytest.raises(CallOrderError, match=r"inside averaged\(\)"):
                push_sum.drain()

    ps.testing.run(2, rank)


def test_a_collective_call_that_a_finished_rank_will_never_make_is_refused_with_its_name():
    def rank(comm):
        z = np.zeros(3)
        push_sum = ps.PushSum([z], graph=Ring(), staleness="unbounded", comm=comm)
        if comm.rank == 0:
            push_sum.close()
            return
        push_sum.drain()

    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(2, rank)
    # Whichever is noticed first: that it has left, or that it calls something else.
    said = (
        r"rank 0 finished after 0 rounds|drain\(\) while rank 0 calls close\(\)|close\(\) while rank 1 calls drain\(\)"
    )
    assert re.search(said, str(caught.value))
    assert isinstance(caught.value.errors.get(1, caught.value.errors.get(0)), PeerFinished | MismatchError)


def test_rounding_on_the_wire_keeps_the_mean():
    torch = pytest.importorskip("torch")

    def rank(comm):
        z = torch.linspace(0, 1, 50, dtype=torch.float64) * (comm.rank + 1.1)
        push_sum = ps.PushSum([z], graph=shift, staleness="unbounded", wire_dtype="bfloat16", comm=comm)
        for _ in range(30):
            push_sum.mix()
        push_sum.close()
        return push_sum.push_weight * z.numpy()

    mean = sum(ps.testing.run(4, rank, seed=3)) / 4
    np.testing.assert_allclose(mean, np.linspace(0, 1, 50) * 2.6, atol=1e-12)


class Clock:
    """The clock of one rank, which moves when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_pace_scales_steps_by_own_time_over_the_mean():
    """Two ranks, 1 s and 3 s per step, that exchange their estimates in halves: scales tend to 1/2 and 3/2."""
    clocks = [Clock(), Clock()]
    paces = [Pace(clock) for clock in clocks]
    for _ in range(60):
        for clock, pace, seconds in zip(clocks, paces, (1.0, 3.0), strict=True):
            clock.now += seconds
            pace.step_done(1.0)
        first, second = (pace.estimate for pace in paces)
        paces[0].merge(second, 0.5)
        paces[1].merge(first, 0.5)
    assert [pace.scale for pace in paces] == [pytest.approx(0.5, rel=1e-6), pytest.approx(1.5, rel=1e-6)]


@pytest.mark.parametrize("corrects", [False, True])
def test_rate_correction_removes_the_bias_towards_fast_ranks(corrects):
    """Each rank pulls to its own number; rank 0 steps four times as often. The fair limit is the plain mean."""
    in_step = threading.Barrier(4, timeout=60.0)

    def rank(comm):
        z, values = np.zeros(1), []
        comm.clock = Clock()
        with ps.PushSum([z], graph=Complete(), staleness="unbounded", rate_correction=corrects, comm=comm) as push_sum:
            for tick in range(800):  # of 4 ms each
                in_step.wait()
                comm.clock.now += 0.004
                if comm.rank == 0 or tick % 4 == comm.rank:
                    with push_sum.local_step():
                        z -= 0.02 * (z - comm.rank)
                    push_sum.mix()
                    values.append(z[0])
        return np.mean(values[len(values) // 2 :])

    limit = np.mean(ps.testing.run(4, rank))
    fair, by_speed = 1.5, (0 * 4 + 1 + 2 + 3) / 7
    if corrects:
        assert abs(limit - fair) < 0.15, limit
    else:
        assert limit < (fair + by_speed) / 2 + 0.05, limit


def test_rate_correction_in_step_is_refused():
    with pytest.raises(ps.testing.RankErrors, match="rate_correction=True with staleness=0") as caught:
        ps.testing.run(1, lambda comm: ps.PushSum([np.zeros(1)], rate_correction=True, comm=comm))
    assert isinstance(caught.value.errors[0], ConfigurationError)
