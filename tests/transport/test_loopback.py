"""Loopback keeps the contract of every transport, and is as unkind as MPI may be."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from transport.contract import CONTRACT, opened

from pushsum_opt import testing, transport
from pushsum_opt.errors import ConfigurationError, PeerFailed


@pytest.mark.parametrize("seed", [None, 1], ids=["prompt", "late"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_contract(promise, size, seed):
    testing.run(size, promise, seed=seed)


def two_ranks(zero, one, **options):
    def rank(comm):
        channel, waiter, _ = opened(comm)
        return (zero if comm.rank == 0 else one)(channel, waiter)

    return testing.run(2, rank, **options)


def test_a_large_send_does_not_complete_before_it_is_received_and_its_bytes_are_taken_only_then():
    def sender(channel, waiter):
        data = np.zeros(1000, np.uint8)
        ticket = channel.post(data, 1, 0, "it")
        channel.poll(0.05)
        assert not ticket.done
        data[:] = 9
        channel.post(np.zeros(1, np.uint8), 1, 1, "go")
        waiter.wait((ticket,), 0)

    def receiver(channel, waiter):
        waiter.wait((channel.expect(np.zeros(1, np.uint8), 0, 1, "go"),), 0)
        box = np.zeros(1000, np.uint8)
        waiter.wait((channel.expect(box, 0, 0, "it"),), 0)
        return box[0]

    assert two_ranks(sender, receiver)[1] == 9


def test_what_is_being_received_is_poisoned():
    def sender(channel, waiter):
        waiter.wait((channel.post(np.zeros(4, np.uint8), 1, 0, "it"),), 0)

    def receiver(channel, waiter):
        box = np.zeros(4, np.uint8)
        ticket = channel.expect(box, 0, 0, "it")
        poisoned = bool((box == 255).all())
        waiter.wait((ticket,), 0)
        return poisoned and not box.any()

    assert two_ranks(sender, receiver, delays=lambda *_: 0.1)[1]


def test_buffers_for_small_messages_are_bounded():
    def sender(channel, waiter):
        tickets = [channel.post(np.zeros(8, np.uint8), 1, 0, "it") for _ in range(20)]
        channel.poll(0.05)
        done = sum(ticket.done for ticket in tickets)
        channel.post(np.zeros(1, np.uint8), 1, 1, "go")
        waiter.wait(tickets, 0)
        return done

    def receiver(channel, waiter):
        waiter.wait((channel.expect(np.zeros(1, np.uint8), 0, 1, "go"),), 0)
        waiter.wait([channel.expect(np.zeros(8, np.uint8), 0, 0, "it") for _ in range(20)], 0)

    assert 0 < two_ranks(sender, receiver)[0] < 20


def test_prescribed_delays_let_messages_overtake_each_other_between_peers():
    def rank(comm):
        channel, waiter, _ = opened(comm)
        if comm.rank == 0:
            first, second = (channel.expect(np.zeros(500, np.uint8), peer, 0, "it") for peer in (1, 2))
            waiter.wait((second,), 0)
            return first.done
        if comm.rank == 2:
            assert sent.wait(60)
        waiter.wait((channel.post(np.zeros(500, np.uint8), 0, 0, "it"),), 0)
        sent.set()
        return None

    sent = threading.Event()
    late = lambda sender, receiver, count: 3600.0 if sender == 1 else 0.0  # noqa: E731
    assert testing.run(3, rank, delays=late)[0] is False


def test_run_returns_results_in_rank_order():
    assert testing.run(5, lambda comm: comm.rank**2) == [0, 1, 4, 9, 16]


def test_run_raises_with_every_traceback_and_leaves_out_those_who_only_followed():
    def rank(comm):
        if comm.rank in (1, 3):
            raise ValueError(f"bad shard {comm.rank}")
        channel, waiter, _ = opened(comm)
        waiter.wait((channel.barrier("the others"),), 0)

    with pytest.raises(testing.RankErrors, match=r"(?s)rank 1 of 4:.*bad shard 1.*rank 3 of 4:.*bad shard 3") as caught:
        testing.run(4, rank)
    assert set(caught.value.errors) == {1, 3}


def test_run_ends_those_who_wait_for_a_failed_rank_and_names_it():
    seen = []

    def rank(comm):
        if comm.rank == 2:
            raise KeyError("lost")
        try:
            channel, waiter, _ = opened(comm)
            waiter.wait((channel.barrier("the others"),), 0)
        except PeerFailed as error:
            seen.append(str(error))
            raise

    with pytest.raises(testing.RankErrors):
        testing.run(3, rank)
    assert len(seen) == 2
    assert all("rank 2 stopped: KeyError: 'lost'" in text for text in seen)


def test_run_stops_after_its_time_limit():
    def rank(comm):
        channel, waiter, _ = opened(comm)
        if comm.rank:
            waiter.wait((channel.barrier("rank 0, which never comes"),), 0)
        else:
            opened(comm)[0].poll(5.0)

    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] of 2"):
        testing.run(2, rank, timeout=0.3)


@pytest.mark.parametrize("comm", [0, "world", object()])
def test_what_is_not_a_communicator_is_refused_with_its_value(comm):
    with pytest.raises(ConfigurationError, match="comm="):
        transport.connect(comm)


def test_size_zero_is_refused():
    with pytest.raises(ValueError, match="size=0"):
        testing.run(0, lambda comm: None)
