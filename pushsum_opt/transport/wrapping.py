"""A transport around another one, which does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from .base import Notice, Ticket, Transport

__all__ = ["Wrapping"]


class Wrapping(Transport):
    """Passes everything on to the transport inside; subclasses change how some of it is done."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.rank = inner.rank
        self.size = inner.size
        self.name = inner.name
        self.progress = inner.progress
        self.ranks = inner.ranks
        self.threaded = inner.threaded
        self.concurrent = inner.concurrent
        self.clock = inner.clock

    @property
    def under_way(self) -> int:
        return self._inner.under_way

    @property
    def bytes_under_way(self) -> int:
        return self._inner.bytes_under_way

    @property
    def collectives(self) -> int:  # type: ignore[override]
        return self._inner.collectives

    def post(self, buffer: Any, peer: int, tag: int, what: str, matched: bool = False) -> Ticket:
        return self._inner.post(buffer, peer, tag, what, matched)

    def expect(self, buffer: Any, peer: int, tag: int, what: str) -> Ticket:
        return self._inner.expect(buffer, peer, tag, what)

    def cancel(self, ticket: Ticket) -> None:
        self._inner.cancel(ticket)

    def broadcast(self, buffer: Any, root: int, what: str) -> Ticket:
        return self._inner.broadcast(buffer, root, what)

    def sum(self, values: Any, what: str) -> Ticket:
        return self._inner.sum(values, what)

    def gather(self, mine: bytes, what: str) -> tuple[Ticket, Any]:
        return self._inner.gather(mine, what)

    def barrier(self, what: str) -> Ticket:
        return self._inner.barrier(what)

    def poll(self, seconds: float) -> bool:
        return self._inner.poll(seconds)

    def refuse_if_stopped(self) -> None:
        self._inner.refuse_if_stopped()

    def revoke(self) -> None:
        self._inner.revoke()

    def alone(self) -> AbstractContextManager[Any]:
        return self._inner.alone()

    def tell(self, peers: Iterable[int], notice: Notice) -> None:
        self._inner.tell(peers, notice)

    def notices(self) -> list[Notice]:
        return self._inner.notices()

    def on_progress(self, callback: Callable[[Transport], None] | None) -> bool:
        return self._inner.on_progress(callback)

    def close(self) -> None:
        self._inner.close()
