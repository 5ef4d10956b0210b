"""A thread that moves messages while the caller computes."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

from .base import Notice, Ticket, Transport
from .naps import rest

__all__ = ["Background"]

P = ParamSpec("P")
R = TypeVar("R")

IDLE = 20e-3  # seconds between polls while there is nothing but a peer's notice that could come
QUIET = 1.0  # seconds without movement after which it is as if nothing were under way: hundreds of threads may wait so


class Background(Transport):
    """Any transport, polled by a thread of its own while the caller computes, and by the caller too while it waits.

    Only one thread at a time talks to the transport below, and the lock that sees to it is never held while waiting: so
    thread level SERIALIZED is enough. What goes wrong in the thread is raised by the caller's next call, with its
    original traceback.

    Args:
        prepare: called by the thread before it first talks to the transport: it chooses the thread's accelerator.
        period: seconds between polls while messages are under way and the caller computes. The default is as long as
            the sockets of a 10 Gbit/s link hold data for.
    """

    def __init__(self, inner: Transport, prepare: Callable[[], None] = lambda: None, *, period: float = 2e-3) -> None:
        self._inner = inner
        self._prepare = prepare
        self._period = period
        self.rank = inner.rank
        self.size = inner.size
        self.name = inner.name
        self.place = inner.place
        self.ranks = inner.ranks
        self.threaded = True
        # Taken by `with` on the lock itself: an interrupt between two lines of Python's would leave it taken for ever.
        self._lock = threading.Lock()
        self._nudge = threading.Lock()  # held, but to wake the thread, which sleeps in acquire()
        self._nudge.acquire()
        self._pausing = 0.0  # seconds that the thread sleeps just now
        self._completions = 0
        self._seen = 0
        self._work_beside: weakref.WeakMethod[Callable[[Transport], None]] | None = None
        self._stopping = False
        self._inbox: list[Notice] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"pushsum_opt rank {self.rank}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ the caller's side

    @property
    def under_way(self) -> int:
        return self._inner.under_way

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
            rest(waited)

    def _see(self) -> bool:
        self._look()
        moved = self._completions != self._seen
        self._seen = self._completions
        return moved

    def serve(self, work: Callable[[Transport], None] | None) -> bool:
        self._in_turn(self._serve, work)
        return True

    def _serve(self, work: Callable[[Transport], None] | None) -> None:
        self._work_beside = None if work is None else weakref.WeakMethod(work)
        self._look()

    def refuse_if_stopped(self) -> None:
        self._inner.refuse_if_stopped()

    def close(self) -> None:
        with self._lock:
            self._stopping = True
            self._wake()
        self._thread.join()
        self._inner.close()

    def _look(self) -> bool:
        """See what the transport below has done; tell whether anything has moved. The lock is held."""
        moved = self._inner.poll(0.0)
        self._completions += moved
        self._inbox += self._inner.notices()
        work = None if self._work_beside is None else self._work_beside()
        if work is not None:
            work(self._inner)
        return moved

    def alone(self) -> AbstractContextManager[Any]:
        return self._lock

    def _in_turn(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do something while the thread does nothing; raise its earlier error; have it look if there is work for it."""
        with self._lock:
            self._raise()
            result = work(*args, **kwargs)
            self._wake()
            return result

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        """Have the thread look at once if it rests though there is something to move. The lock is held."""
        rests = self._pausing > self._period and self._nudge.locked()  # only callers unlock it, and they hold the lock
        if rests and (self._stopping or self._inner.under_way):
            self._nudge.release()

    @property
    def collectives(self) -> int:  # type: ignore[override]
        return self._inner.collectives

    # ------------------------------------------------------------------ the thread's side

    def _work(self) -> None:
        try:
            self._prepare()
            active = time.monotonic()
            while not self._stopping:
                with self._lock:
                    moved = self._look()
                    now = time.monotonic()
                    active = now if moved else active
                    pause = self._period if self._inner.under_way and now - active < QUIET else IDLE
                    self._pausing = 0.0 if moved else pause
                if not moved and self._nudge.acquire(timeout=pause):
                    active = time.monotonic()  # the caller has begun something
        except BaseException as error:
            with self._lock:
                self._error = error
