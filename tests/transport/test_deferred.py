"""Buffers that an accelerator is not done with keep the contract of every transport, and are not touched too early."""

from __future__ import annotations

import random

import numpy as np
import pytest
from transport.contract import CONTRACT

from pushsum_opt import testing, transport
from pushsum_opt.buffers import PendingBuffer
from pushsum_opt.transport import opening
from pushsum_opt.transport.deferred import Deferred


class Countdown:
    """An event that has happened once it was asked for a while."""

    def __init__(self, questions):
        self.left = questions

    def query(self):
        self.left -= 1
        return self.left < 0


class AllLate(Deferred):
    """Makes every buffer late, at random."""

    def __init__(self, inner):
        super().__init__(inner)
        self._random = random.Random(inner.rank)

    def post(self, buffer, *arguments):
        return super().post(self._late(buffer), *arguments)

    def expect(self, buffer, *arguments):
        return super().expect(self._late(buffer), *arguments)

    def _late(self, buffer):
        questions = self._random.choice((0, 1, 3, 20))
        return PendingBuffer(buffer, Countdown(questions)) if questions else buffer


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_contract(promise, size, monkeypatch):
    opens = opening._open
    monkeypatch.setattr(opening, "_open", lambda *arguments: AllLate(opens(*arguments)))
    testing.run(size, promise, seed=2)


def pair(rank_0, rank_1):
    def rank(comm):
        channel = Deferred(transport.connect(comm))
        return (rank_0, rank_1)[comm.rank](channel)

    return testing.run(2, rank)


def until(channel, *tickets):
    while not all(ticket.done for ticket in tickets):
        channel.poll(0.05)


def test_nothing_is_sent_before_the_buffer_is_ready():
    event = Countdown(30)

    def sender(channel):
        data = np.zeros(4, np.uint8)
        ticket = channel.post(PendingBuffer(data, event), 1, 0, "it")
        for _ in range(5):
            channel.poll(0.0)
        assert not ticket.done
        assert channel.under_way == 1
        data[:] = 7  # what the device writes, before its event
        until(channel, ticket)
        assert channel.under_way == 0

    def receiver(channel):
        data = np.zeros(4, np.uint8)
        until(channel, channel.expect(data, 0, 0, "it"))
        assert data.tolist() == [7] * 4
        assert event.left < 0

    pair(sender, receiver)


def test_a_slab_is_not_received_into_while_it_is_still_read():
    def sender(channel):
        until(channel, channel.post(np.full(4, 1, np.uint8), 1, 0, "it"))

    def receiver(channel):
        slab = np.full(4, 5, np.uint8)
        event = Countdown(30)
        ticket = channel.expect(PendingBuffer(slab, event), 0, 0, "it")
        while event.left > 0:
            assert slab.tolist() == [5] * 4
            channel.poll(0.0)
        until(channel, ticket)
        assert slab.tolist() == [1] * 4

    pair(sender, receiver)


def test_a_ready_buffer_does_not_overtake_a_late_one_with_the_same_tag_and_does_one_with_another():
    def sender(channel):
        first = channel.post(PendingBuffer(np.full(1, 1, np.uint8), Countdown(20)), 1, 0, "first")
        second = channel.post(np.full(1, 2, np.uint8), 1, 0, "second")
        other = channel.post(np.full(1, 3, np.uint8), 1, 1, "other")
        until(channel, other)
        assert not first.done
        assert not second.done
        until(channel, first, second)

    def receiver(channel):
        boxes = [np.zeros(1, np.uint8) for _ in range(3)]
        until(channel, channel.expect(boxes[2], 0, 1, "it"))
        until(channel, *(channel.expect(box, 0, 0, "it") for box in boxes[:2]))
        assert [int(box[0]) for box in boxes] == [1, 2, 3]

    pair(sender, receiver)


def test_an_expectation_is_taken_back_before_and_after_it_has_begun():
    def alone(comm):
        channel = Deferred(transport.connect(comm))
        never = channel.expect(PendingBuffer(np.zeros(1, np.uint8), Countdown(10**9)), 0, 0, "it")
        begun = channel.expect(PendingBuffer(np.zeros(1, np.uint8), None), 0, 1, "it")
        channel.cancel(never)
        channel.cancel(begun)
        assert channel.under_way == 0
        assert not channel.poll(0.0)

    testing.run(1, alone)


def test_a_look_asks_one_buffer_of_those_that_must_not_overtake_each_other():
    """What a look costs does not grow with the chunks that wait for the device."""
    asked = []

    class Never:
        def query(self):
            asked.append(self)
            return False

    def rank(comm):
        channel = Deferred(transport.connect(comm))
        tickets = [channel.expect(PendingBuffer(np.zeros(1, np.uint8), Never()), 0, 7, "it") for _ in range(50)]
        asked.clear()
        channel.poll(0.0)
        under_way = channel.under_way
        for ticket in tickets:
            channel.cancel(ticket)
        return len(asked), under_way, channel.under_way

    assert testing.run(1, rank) == [(1, 50, 0)]


def test_the_beginning_of_a_transfer_is_movement():
    """A thread that looks rarely after a quiet time looks often again from there on."""

    def rank_0(channel):
        ticket = channel.expect(PendingBuffer(np.empty(1), Countdown(2)), 1, 0, "a message that never comes")
        moved = [channel.poll(0.0) for _ in range(3)]
        channel.cancel(ticket)
        return moved

    assert pair(rank_0, lambda channel: None)[0] == [False, True, False]
