"""How often the thread that moves messages looks at them."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np

from pushsum_opt import testing
from pushsum_opt.transport import background
from pushsum_opt.transport.background import HOST_PERIOD_S, IDLE_PERIOD_S, Background
from pushsum_opt.transport.loopback import LoopbackTransport
from pushsum_opt.transport.wrapping import Wrapping

SECONDS = 60  # until the test gives up


class Recording:
    """A lock that keeps the timeouts with which it was asked for."""

    def __init__(self, lock):
        self.timeouts = []
        self.lock = lock
        self.release, self.locked = lock.release, lock.locked

    def acquire(self, timeout):
        self.timeouts.append(timeout)
        return self.lock.acquire(timeout=timeout)


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1e-3)


def test_messages_that_do_not_move_are_looked_at_rarely_and_often_again_once_one_is_added(monkeypatch):
    monkeypatch.setattr("pushsum_opt.transport.background.QUIET_S", 0.1)
    over = threading.Barrier(2)

    def rank(comm):
        transport = Background(LoopbackTransport(comm))
        if comm.rank == 0:
            sleeps = transport._sleeping = Recording(transport._sleeping)
            tickets = [transport.expect(np.empty(1), 1, 0, "a message that never comes")]
            until(lambda: HOST_PERIOD_S in sleeps.timeouts and sleeps.timeouts[-1] == IDLE_PERIOD_S)
            before = len(sleeps.timeouts)
            tickets.append(transport.expect(np.empty(1), 1, 1, "another"))
            until(lambda: HOST_PERIOD_S in sleeps.timeouts[before:])
            for ticket in tickets:
                transport.cancel(ticket)
        over.wait(SECONDS)
        transport.close()

    testing.run(2, rank, timeout=2 * SECONDS)


class Link(Wrapping):
    """One message at a time over a link of a given speed, which moves at most what its socket holds at each poll."""

    SOCKET_BYTES = 2_500_000

    def __init__(self, inner, clock, bytes_per_s):
        super().__init__(inner)
        self.now, self.bytes_per_s = clock, bytes_per_s
        self.size, self.left, self.begun, self.last = 0, 0, 0.0, 0.0
        self.took = None

    under_way = property(lambda self: int(self.left > 0))
    bytes_under_way = property(lambda self: self.size)

    def post(self, buffer, peer, tag, what, matched=False):
        self.begun = self.last = self.now()
        self.size = self.left = len(buffer)

    def poll(self, seconds):
        if self.left == 0:
            return False
        self.left -= min(self.left, self.SOCKET_BYTES, round(self.bytes_per_s * (self.now() - self.last)))
        self.last = self.now()
        if self.left == 0:
            self.took = self.now() - self.begun
        return self.left == 0


class Sleep:
    """The lock that the thread sleeps in; its sleeps take no time but on the clock of the test."""

    def __init__(self):
        self.now, self.woken = 0.0, False

    def locked(self):
        return not self.woken

    def release(self):
        self.woken = True

    def acquire(self, timeout):
        time.sleep(0)
        self.now += 0.0 if self.woken else timeout
        woken, self.woken = self.woken, False
        return woken


def test_a_message_that_takes_longer_than_a_second_moves_at_the_speed_of_its_link(monkeypatch):
    sleep = Sleep()
    monkeypatch.setattr(background, "time", SimpleNamespace(monotonic=lambda: sleep.now))

    def rank(comm):
        link = Link(LoopbackTransport(comm), lambda: sleep.now, bytes_per_s=600_000_000)
        transport = Background(link)
        transport._sleeping = sleep
        transport.post(range(2_000_000_000), 0, 0, "a long message")
        until(lambda: link.took is not None)
        transport.close()
        return link.took

    [took] = testing.run(1, rank)
    assert took < 1.01 * 2_000_000_000 / 600_000_000
