"""What every transport promises, as functions of one rank's communicator: run on loopback and under mpirun alike."""

from __future__ import annotations

import re

import numpy as np

from pushsum_opt import transport
from pushsum_opt.errors import ClosedError, PeerFailed, PeerFinished, PeerTimeout
from pushsum_opt.observe.events import Events, Listener
from pushsum_opt.transport import Notice
from pushsum_opt.transport.waiting import Waiter


class Heard(Listener):
    def __init__(self):
        self.stalls = []

    def stalled(self, seconds, what):
        self.stalls.append(what)


def opened(comm, timeout=60.0, stall=30.0):
    events = Events()
    heard = Heard()
    events.subscribe(heard)
    channel = transport.connect(comm)
    return channel, Waiter(channel, events, timeout, stall), heard


def finish(channel, waiter):
    waiter.wait((channel.barrier("the end"),), 0)
    channel.close()


def wait_until_all_are_open(channel, waiter):
    """Let rank 0 go on only when every rank has opened its channel.

    A collective cannot do this: rank 0 may leave it, and say that it has failed, while another rank is still inside.
    That rank then ends its opening with the failure, which is right, but not what these tests are about.
    """
    if channel.rank == 0:
        hello = [np.zeros(1, np.uint8) for _ in range(1, channel.size)]
        waiter.wait([channel.expect(box, peer, 2, "its hello") for peer, box in enumerate(hello, 1)], 0)
    else:
        waiter.wait([channel.post(np.zeros(1, np.uint8), 0, 2, "it")], 0)


def messages_of_any_size_arrive_whole(comm):
    channel, waiter, _ = opened(comm)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for count in (1, 40, 127, 128, 129, 4096, 65537, 3_000_000):
        sent = np.random.default_rng([count, comm.rank]).integers(0, 256, count, np.uint8)
        received = np.zeros(count, np.uint8)
        expected = np.random.default_rng([count, left]).integers(0, 256, count, np.uint8)
        if comm.size == 1:
            continue
        tickets = [channel.expect(received, left, 3, "it"), channel.post(sent, right, 3, "it")]
        waiter.wait(tickets, 0)
        np.testing.assert_array_equal(received, expected)
    finish(channel, waiter)


def a_message_shorter_than_its_buffer_fills_the_beginning(comm):
    channel, waiter, _ = opened(comm)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for room, count in ((200, 0), (200, 1), (100_000, 27), (3_000_000, 800_000)):
        if comm.size == 1:
            continue
        received = np.zeros(room, np.uint8)
        sent = np.full(count, 1 + comm.rank, np.uint8)
        waiter.wait([channel.expect(received, left, 3, "it"), channel.post(sent, right, 3, "it")], 0)
        assert (received[:count] == 1 + left).all()
    finish(channel, waiter)


def equal_tags_keep_their_order_and_other_tags_do_not_disturb(comm):
    channel, waiter, _ = opened(comm)
    if comm.size > 1:
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        sizes = [40, 200_000, 8, 70_000, 1]
        boxes = {tag: [np.zeros(size, np.uint8) for size in sizes] for tag in (0, 1)}
        tickets = [channel.expect(box, left, tag, "it") for tag in (1, 0) for box in boxes[tag]]
        for index, size in enumerate(sizes):
            for tag in (0, 1):
                tickets.append(channel.post(np.full(size, 10 * tag + index, np.uint8), right, tag, "it"))
        waiter.wait(tickets, 0)
        for tag, received in boxes.items():
            for index, box in enumerate(received):
                assert (box == 10 * tag + index).all()
    finish(channel, waiter)


def two_transports_on_one_communicator_do_not_mix(comm):
    first, first_waiter, _ = opened(comm)
    second, second_waiter, _ = opened(comm)
    if comm.size > 1:
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        boxes = [np.zeros(50_000, np.uint8) for _ in range(2)]
        tickets = [second.expect(boxes[1], left, 0, "it"), first.expect(boxes[0], left, 0, "it")]
        tickets += [first.post(np.full(50_000, 1, np.uint8), right, 0, "it")]
        tickets += [second.post(np.full(50_000, 2, np.uint8), right, 0, "it")]
        first_waiter.wait([tickets[1], tickets[2]], 0)
        second_waiter.wait([tickets[0], tickets[3]], 0)
        assert (boxes[0] == 1).all()
        assert (boxes[1] == 2).all()
    finish(first, first_waiter)
    finish(second, second_waiter)


def collectives_give_every_rank_the_same(comm):
    channel, waiter, _ = opened(comm)
    for root in range(comm.size):
        buffer = np.full(100_000, comm.rank, np.uint8)
        waiter.wait((channel.broadcast(buffer, root, "broadcast"),), 0)
        assert (buffer == root).all()
    values = np.random.default_rng(comm.rank).normal(size=1000)
    total = values.copy()
    ticket, rows = channel.gather(values.tobytes(), "gather")
    waiter.wait((channel.sum(total, "sum"), ticket), 0)
    everyone = np.stack([np.random.default_rng(rank).normal(size=1000) for rank in range(comm.size)])
    np.testing.assert_allclose(total, everyone.sum(0), rtol=1e-12, atol=1e-12)
    assert rows.tobytes() == everyone.tobytes()
    ticket, rows = channel.gather(total.tobytes(), "gather")
    waiter.wait((ticket,), 0)
    assert (rows == rows[0]).all(), "a sum has the same bits on every rank"
    finish(channel, waiter)


def a_silent_peer_ends_in_peer_timeout_after_stall_lines(comm):
    channel, waiter, heard = opened(comm, timeout=0.7, stall=0.2)
    if comm.size > 1:
        left = (comm.rank - 1) % comm.size
        channel.expect(np.zeros(4, np.uint8), left, 0, "its message of round 4")
        try:
            waiter.wait((channel.expect(np.zeros(4, np.uint8), left, 1, "its message of round 4"),), 4)
        except PeerTimeout as error:
            waited = re.search(f"rank {comm.rank}: waited ([0-9.]+) s", str(error))
            assert float(waited[1]) >= 0.7
            assert f"rank {left}: its message of round 4, round 4" in str(error)
        else:
            raise AssertionError("it did not end")
        assert heard.stalls
        assert f"rank {left}" in heard.stalls[0]
        Waiter(channel, Events(), 60.0, 30.0).wait((channel.barrier("everyone to time out"),), 4)
        for tag in (0, 1):  # so that nothing is left under way
            channel.post(np.zeros(4, np.uint8), (comm.rank + 1) % comm.size, tag, "it")
    finish(channel, Waiter(channel, Events(), 60.0, 30.0))


def a_notice_of_failure_ends_a_wait_at_once_with_its_reason(comm):
    channel, waiter, _ = opened(comm)
    if comm.size > 1:
        box = np.zeros(4, np.uint8)
        ticket = None if comm.rank == 0 else channel.expect(box, 0, 0, "its message")
        wait_until_all_are_open(channel, waiter)
        if comm.rank == 0:
            channel.tell(range(comm.size), Notice(0, True, 7, channel.collectives, "out of memory: é" + "x" * 5000))
        else:
            try:
                waiter.wait((ticket,), 7)
            except PeerFailed as error:
                assert f"rank {comm.rank}: rank 0 stopped: out of memory: é" in str(error)
            else:
                raise AssertionError("it did not end")
        Waiter(channel, Events(), 60.0, 30.0).wait((channel.barrier("everyone to notice"),), 0)
        if comm.rank == 0:
            for peer in range(1, comm.size):
                channel.post(box, peer, 0, "it")
    finish(channel, Waiter(channel, Events(), 60.0, 30.0))


def a_peer_that_finished_is_not_waited_for(comm):
    channel, waiter, _ = opened(comm)
    if comm.size > 1:
        box = np.zeros(4, np.uint8)
        wait_until_all_are_open(channel, waiter)
        if comm.rank == 0:
            channel.tell(range(comm.size), Notice(0, False, 3, channel.collectives, ""))
        else:
            early, late = channel.expect(box.copy(), 0, 0, "its message of round 2"), channel.expect(box, 0, 1, "it")
            try:
                waiter.wait((late,), 3)
            except PeerFinished as error:
                assert "rank 0 finished after 3 rounds" in str(error)
            else:
                raise AssertionError("it did not end")
        Waiter(channel, Events(), 60.0, 30.0).wait((channel.barrier("everyone to notice"),), 0)
        if comm.rank == 0:
            for peer in range(1, comm.size):
                channel.post(box, peer, 0, "it")
                channel.post(box, peer, 1, "it")
        else:
            waiter.wait((early,), 2)  # round 2 was before it finished: that message still comes
    finish(channel, Waiter(channel, Events(), 60.0, 30.0))


def what_a_failed_transport_leaves_does_not_come_to_the_next_one(comm):
    """MPICH gives the number of a communicator that was freed to the next one, with the messages that nobody took."""
    if comm.size == 1:
        return
    before, waiter, _ = opened(comm)
    wait_until_all_are_open(before, waiter)
    if comm.rank == 0:
        for time in range(3):  # more than are listened for
            before.tell(range(1, comm.size), Notice(0, True, 0, before.collectives, f"failure {time}"))
        while before.under_way:  # they are taken, or buffered
            before.poll(0.1)
    between, waiter, _ = opened(comm)
    waiter.wait((between.barrier("all notices to be sent"),), 0)
    before.poll(0.0)
    before.close()
    after, waiter, _ = opened(comm)
    waiter.wait((after.barrier("all to hear nothing"),), 0)
    assert after.notices() == []
    finish(after, waiter)
    finish(between, Waiter(between, Events(), 60.0, 30.0))


def a_closed_transport_says_so(comm):
    channel, waiter, _ = opened(comm)
    finish(channel, waiter)
    channel.close()
    try:
        channel.barrier("again")
    except ClosedError as error:
        assert f"rank {comm.rank}" in str(error)
    else:
        raise AssertionError("it was not refused")


CONTRACT = [
    messages_of_any_size_arrive_whole,
    a_message_shorter_than_its_buffer_fills_the_beginning,
    equal_tags_keep_their_order_and_other_tags_do_not_disturb,
    two_transports_on_one_communicator_do_not_mix,
    collectives_give_every_rank_the_same,
    a_silent_peer_ends_in_peer_timeout_after_stall_lines,
    a_notice_of_failure_ends_a_wait_at_once_with_its_reason,
    a_peer_that_finished_is_not_waited_for,
    what_a_failed_transport_leaves_does_not_come_to_the_next_one,
    a_closed_transport_says_so,
]
