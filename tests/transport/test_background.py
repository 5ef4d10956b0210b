"""How often the thread that moves messages looks at them."""

from __future__ import annotations

import threading
import time

import numpy as np

from pushsum_opt import testing
from pushsum_opt.transport.background import HOST_PERIOD_S, IDLE_PERIOD_S, Background
from pushsum_opt.transport.loopback import LoopbackTransport

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
