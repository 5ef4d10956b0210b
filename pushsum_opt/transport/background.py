"""A thread that moves messages while the caller computes."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

from .base import Notice, Ticket, Transport
from .naps import nap
from .roll_call import LISTEN_AFTER_S
from .wrapping import Wrapping

__all__ = ["Background"]

P = ParamSpec("P")
R = TypeVar("R")

HOST_PERIOD_S = 2e-3
"""Between two polls while messages are under way. The sockets of a 10 Gbit/s link hold the data of about this time."""
IDLE_PERIOD_S = 20e-3
"""Between two polls while nothing can come but a peer's notice that it has failed or finished."""
QUIET_S = 1.0
"""After so long without a completed message, and the time that long messages take, polls are IDLE_PERIOD_S apart: where
hundreds of threads wait for peers that do not come, they would otherwise take whole cores. The next completion, or any
call of the caller, ends this. A message that comes meanwhile is noticed up to IDLE_PERIOD_S late."""
RARE_POLLS_MOVE_BYTES_PER_S = 10_000_000
"""What still moves with polls IDLE_PERIOD_S apart: a socket that has not grown holds 200 kB. A link that is faster has
moved what is under way after QUIET_S and the time that this rate takes; a slower one needs no more frequent polls."""


def pause_s(quiet_s: float, transfers: int, bytes_under_way: int, period_s: float) -> float:
    """Return for how long the thread sleeps between two polls.

    Args:
        quiet_s: seconds since a message was completed or the caller called.
        transfers: how many are under way.
        bytes_under_way: of these transfers.
        period_s: the pause where messages move.

    >>> pause_s(0.5, 2, 80, 2e-3), pause_s(1.5, 2, 80, 2e-3), pause_s(1.5, 2, 64_000_000, 2e-3)
    (0.002, 0.02, 0.002)
    """
    moves = transfers and quiet_s < QUIET_S + bytes_under_way / RARE_POLLS_MOVE_BYTES_PER_S
    return period_s if moves else IDLE_PERIOD_S


class Background(Wrapping):
    """Any transport, polled by a thread of its own while the caller computes, and by the caller too while it waits.

    Only one thread at a time talks to the transport below, and the lock that sees to it is never held while waiting.
    But the caller may use other transports, or MPI itself, while the thread polls this one: so thread level SERIALIZED
    is not enough. What goes wrong in the thread is raised by the caller's next call, with its original traceback.

    Args:
        prepare: called by the thread before it first talks to the transport: it chooses the thread's accelerator.
        period: seconds between polls while messages are under way and the caller computes.
    """

    def __init__(
        self, inner: Transport, prepare: Callable[[], None] = lambda: None, *, period: float = HOST_PERIOD_S
    ) -> None:
        super().__init__(inner)
        self._prepare = prepare
        self._period = period
        # Taken by `with` on the lock itself: an interrupt inside a method of ours would leave it taken for ever.
        self._lock = threading.Lock()
        # The thread sleeps in sleeping.acquire(timeout=...). Whoever releases this lock wakes it. (An Event would take
        # two locks for the same.)
        self._sleeping = threading.Lock()
        self._sleeping.acquire()
        self._pause_s = 0.0  # for how long the thread sleeps now
        self._completions = 0
        self._seen = 0
        self._callback: weakref.WeakMethod[Callable[[Transport], None]] | None = None
        self._stopping = False
        self._inbox: list[Notice] = []
        self._listened = 0.0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"pushsum_opt rank {self.rank}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ the caller's side

    def post(self, buffer: Any, peer: int, tag: int, what: str, matched: bool = False) -> Ticket:
        return self._in_turn(self._inner.post, buffer, peer, tag, what, matched)

    def expect(self, buffer: Any, peer: int, tag: int, what: str) -> Ticket:
        return self._in_turn(self._inner.expect, buffer, peer, tag, what)

    def cancel(self, ticket: Ticket) -> None:
        self._in_turn(self._inner.cancel, ticket)

    def broadcast(self, buffer: Any, root: int, what: str) -> Ticket:
        return self._in_turn(self._inner.broadcast, buffer, root, what)

    def sum(self, values: Any, what: str) -> Ticket:
        return self._in_turn(self._inner.sum, values, what)

    def gather(self, mine: bytes, what: str) -> tuple[Ticket, Any]:
        return self._in_turn(self._inner.gather, mine, what)

    def barrier(self, what: str) -> Ticket:
        return self._in_turn(self._inner.barrier, what)

    def tell(self, peers: Iterable[int], notice: Notice) -> None:
        with self._lock:  # also when the thread has failed: that is what the notice is about
            self._inner.tell(peers, notice)

    def notices(self) -> list[Notice]:
        return self._in_turn(self._take_notices)

    def _take_notices(self) -> list[Notice]:
        inbox, self._inbox = self._inbox, []
        return inbox

    def poll(self, seconds: float) -> bool:
        begin = time.monotonic()
        while True:
            moved = self._in_turn(self._see)
            waited = time.monotonic() - begin
            if moved or self._inbox or waited >= seconds:
                return moved
            nap(waited)

    def _see(self) -> bool:
        self._look()
        moved = self._completions != self._seen
        self._seen = self._completions
        return moved

    def on_progress(self, callback: Callable[[Transport], None] | None) -> bool:
        self._in_turn(self._set_callback, callback)
        return True

    def _set_callback(self, callback: Callable[[Transport], None] | None) -> None:
        self._callback = None if callback is None else weakref.WeakMethod(callback)
        self._look()

    def close(self) -> None:
        with self._lock:
            self._stopping = True
            self._wake_thread()
        self._thread.join()
        self._inner.close()

    def _look(self) -> bool:
        """See what the transport below has done; tell whether anything has moved. Needs the lock."""
        moved = self._inner.poll(0.0)
        self._completions += moved
        self._inbox += self._inner.notices()
        callback = None if self._callback is None else self._callback()
        if callback is not None:
            callback(self._inner)
        return moved

    def alone(self) -> AbstractContextManager[Any]:
        return self._lock

    def _in_turn(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call something that the thread must not do at the same time.

        Raises:
            Exception: what went wrong in the thread before.
        """
        with self._lock:
            self._raise()
            result = work(*args, **kwargs)
            self._wake_thread()
            return result

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _wake_thread(self) -> None:
        """End the thread's long sleep early: the caller has called while something is under way. Needs the lock."""
        idle = self._pause_s > self._period and self._sleeping.locked()  # not woken already
        if idle and (self._stopping or self._inner.under_way):
            self._sleeping.release()

    # ------------------------------------------------------------------ the thread's side

    def _work(self) -> None:
        try:
            self._prepare()
            active = time.monotonic()
            while not self._stopping:
                with self._lock:
                    moved = self._look()
                    now = time.monotonic()
                    if self.progress is not None and now - self._listened >= LISTEN_AFTER_S:
                        self._listened = now
                        self.progress.roll.listen_if_quiet()
                    active = now if moved else active
                    inner = self._inner
                    pause = pause_s(now - active, inner.under_way, inner.bytes_under_way, self._period)
                    self._pause_s = 0.0 if moved else pause
                if not moved and self._sleeping.acquire(timeout=pause):
                    active = time.monotonic()  # the caller is active
        except BaseException as error:
            with self._lock:
                self._error = error
