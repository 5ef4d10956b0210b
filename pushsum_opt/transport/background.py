"""A thread that moves messages while the caller computes."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from .base import Notice, Ticket, Transport
from .naps import rest

__all__ = ["Background"]

IDLE = 20e-3  # seconds between polls while there is nothing but a peer's notice that could come


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

    def __init__(
        self, inner: Transport, prepare: Callable[[], None] = lambda: None, *, period: float = 2e-3
    ) -> None:
        self._inner = inner
        self._prepare = prepare
        self._period = period
        self.rank = inner.rank
        self.size = inner.size
        self.name = inner.name
        self.place = inner.place
        self.ranks = inner.ranks
        self.threaded = True
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
        with self._turn():
            return self._inner.post(buffer, peer, tag, what, matched)

    def expect(self, buffer: Any, peer: int, tag: int, what: str) -> Ticket:
        with self._turn():
            return self._inner.expect(buffer, peer, tag, what)

    def cancel(self, ticket: Ticket) -> None:
        with self._turn():
            self._inner.cancel(ticket)

    def broadcast(self, buffer: Any, root: int, what: str) -> Ticket:
        with self._turn():
            return self._inner.broadcast(buffer, root, what)

    def sum(self, values: Any, what: str) -> Ticket:
        with self._turn():
            return self._inner.sum(values, what)

    def gather(self, mine: bytes, what: str) -> tuple[Ticket, Any]:
        with self._turn():
            return self._inner.gather(mine, what)

    def barrier(self, what: str) -> Ticket:
        with self._turn():
            return self._inner.barrier(what)

    def tell(self, peers: Iterable[int], notice: Notice) -> None:
        with self._lock:  # also when the thread has failed: that is what the notice is about
            self._inner.tell(peers, notice)

    def notices(self) -> list[Notice]:
        with self._turn():
            inbox, self._inbox = self._inbox, []
            return inbox

    def poll(self, seconds: float) -> bool:
        begin = time.monotonic()
        while True:
            with self._turn():
                self._look()
                moved = self._completions != self._seen
                self._seen = self._completions
                waited = time.monotonic() - begin
                if moved or self._inbox or waited >= seconds:
                    return moved
            rest(waited)

    def serve(self, work: Callable[[Transport], None] | None) -> bool:
        with self._turn():
            self._work_beside = None if work is None else weakref.WeakMethod(work)
            self._look()
        return True

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

    def alone(self) -> AbstractContextManager[None]:
        return self._turn()

    def _turn(self) -> _Turn:
        return _Turn(self)

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
            while not self._stopping:
                with self._lock:
                    moved = self._look()
                    pause = self._period if self._inner.under_way else IDLE
                    self._pausing = 0.0 if moved else pause
                if not moved:
                    self._nudge.acquire(timeout=pause)
        except BaseException as error:
            with self._lock:
                self._error = error


class _Turn:
    """The lock, an earlier error, and a nudge for the thread where there is something to move."""

    __slots__ = ("_owner",)

    def __init__(self, owner: Background) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        self._owner._lock.acquire()
        try:
            self._owner._raise()
        except BaseException:
            self._owner._lock.release()
            raise

    def __exit__(self, *exc: object) -> None:
        self._owner._wake()
        self._owner._lock.release()
