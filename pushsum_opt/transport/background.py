"""A thread that moves messages while the caller computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from .base import Notice, Ticket, Transport

__all__ = ["Background"]

DUE = 140e-6  # seconds between polls while somebody waits for a message,
MOVING = 1e-3  # while messages are under way and the caller computes: the sockets hold that much,
IDLE = 20e-3  # and while there is nothing but a peer's notice that could come


class Background(Transport):
    """Any transport, polled by a thread of its own.

    Only one thread at a time talks to the transport below, and the lock that sees to it is never held while waiting: so
    thread level SERIALIZED is enough. What goes wrong in the thread is raised by the caller's next call, with its
    original traceback.

    Args:
        prepare: called by the thread before it first talks to the transport: it chooses the thread's accelerator.
    """

    def __init__(self, inner: Transport, prepare: Callable[[], None] = lambda: None) -> None:
        self._inner = inner
        self._prepare = prepare
        self.rank = inner.rank
        self.size = inner.size
        self.name = inner.name
        self.threaded = True
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._completions = 0
        self._seen = 0
        self._waiting = False
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
        with self._changed:
            self._waiting = True
            self._changed.notify_all()
            try:
                self._changed.wait_for(self._has_news, seconds)
            finally:
                self._waiting = False
            self._raise()
            moved = self._completions != self._seen
            self._seen = self._completions
            return moved

    def close(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        self._inner.close()

    def _has_news(self) -> bool:
        return self._completions != self._seen or bool(self._inbox) or self._error is not None

    def _turn(self) -> _Turn:
        return _Turn(self)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    @property
    def collectives(self) -> int:  # type: ignore[override]
        return self._inner.collectives

    # ------------------------------------------------------------------ the thread's side

    def _work(self) -> None:
        try:
            self._prepare()
            while not self._stopping:
                with self._changed:
                    moved = self._inner.poll(0.0)
                    self._completions += moved
                    self._inbox += self._inner.notices()
                    if moved or self._inbox:
                        self._changed.notify_all()
                    if not moved:
                        pause = DUE if self._waiting else MOVING if self._inner.under_way else IDLE
                        self._changed.wait(pause)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()


class _Turn:
    """The lock, an earlier error, and a nudge for the thread when something new is under way."""

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
        self._owner._changed.notify_all()
        self._owner._lock.release()
