"""Buffers that an accelerator is not done with: they reach the transport below as soon as it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..memory.late import Late
from .base import Notice, Ticket, Transport

__all__ = ["Deferred"]

GLANCE = 100e-6  # seconds between looks at an accelerator while a buffer waits for it

_Way = tuple[bool, int | None, int]


@dataclass(eq=False)
class _Held:
    """One transfer, from when it was asked for until it is done."""

    ticket: Ticket
    late: Late
    tag: int
    matched: bool
    inner: Ticket | None = None
    """The transfer below, once it has begun."""

    @property
    def way(self) -> _Way:
        """Transfers that must not overtake each other have the same."""
        return self.ticket.sends, self.ticket.peer, self.tag


class Deferred(Transport):
    """Any transport, for callers that never wait for an accelerator.

    ``post`` and ``expect`` return at once, also where the packing of the buffer, or the last reading of what was in it,
    is still to be done. Such a transfer begins at the first poll after that, and keeps its place among those between
    the same ranks with the same tag. Other buffers pass straight through.
    """

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.rank = inner.rank
        self.size = inner.size
        self.name = inner.name
        self.place = inner.place
        self.ranks = inner.ranks
        self.threaded = inner.threaded
        # Of transfers that must not overtake each other only the first can begin, so only its buffer is asked.
        self._waiting: dict[_Way, deque[_Held]] = {}
        self._begun: list[_Held] = []

    @property
    def under_way(self) -> int:
        return self._inner.under_way + sum(map(len, self._waiting.values()))

    @property
    def collectives(self) -> int:  # type: ignore[override]
        return self._inner.collectives

    # ------------------------------------------------------------------ messages

    def post(self, buffer: Any, peer: int, tag: int, what: str, matched: bool = False) -> Ticket:
        if not isinstance(buffer, Late) and not self._would_overtake(True, peer, tag):
            return self._inner.post(buffer, peer, tag, what, matched)
        return self._hold(Ticket(what, peer, buffer, sends=True), tag, matched)

    def expect(self, buffer: Any, peer: int, tag: int, what: str) -> Ticket:
        if not isinstance(buffer, Late) and not self._would_overtake(False, peer, tag):
            return self._inner.expect(buffer, peer, tag, what)
        return self._hold(Ticket(what, peer, buffer), tag, False)

    def cancel(self, ticket: Ticket) -> None:
        held = next((one for one in self._begun if one.ticket is ticket), None)
        if held is not None:
            assert held.inner is not None
            self._begun.remove(held)
            self._inner.cancel(held.inner)
            return
        for way, queue in self._waiting.items():
            held = next((one for one in queue if one.ticket is ticket), None)
            if held is not None:
                queue.remove(held)
                if not queue:
                    del self._waiting[way]
                return
        self._inner.cancel(ticket)

    def _would_overtake(self, sends: bool, peer: int, tag: int) -> bool:
        return (sends, peer, tag) in self._waiting

    def _hold(self, ticket: Ticket, tag: int, matched: bool) -> Ticket:
        late = ticket.buffer if isinstance(ticket.buffer, Late) else Late(ticket.buffer, None)
        held = _Held(ticket, late, tag, matched)
        self._waiting.setdefault(held.way, deque()).append(held)
        self._begin_what_is_ready()
        return ticket

    def _begin_what_is_ready(self) -> None:
        for way, queue in list(self._waiting.items()):
            while queue and queue[0].late.ready():
                held = queue.popleft()
                held.inner = self._begin(held)
                self._begun.append(held)
            if not queue:
                del self._waiting[way]

    def _begin(self, held: _Held) -> Ticket:
        ticket = held.ticket
        assert ticket.peer is not None
        if ticket.sends:
            return self._inner.post(held.late.data, ticket.peer, held.tag, ticket.what, held.matched)
        return self._inner.expect(held.late.data, ticket.peer, held.tag, ticket.what)

    # ------------------------------------------------------------------ progress

    def poll(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            self._begin_what_is_ready()
            left = max(0.0, deadline - time.monotonic())
            waits = bool(self._waiting)
            moved = self._inner.poll(min(left, GLANCE) if waits else left)
            moved = self._finish() or moved
            if moved or time.monotonic() >= deadline or not waits:
                return moved

    def _finish(self) -> bool:
        """Mark what the transport below has done; tell whether there was anything."""
        done = [held for held in self._begun if held.inner is not None and held.inner.done]
        for held in done:
            held.ticket.done = True
            held.ticket.buffer = None
        if done:
            self._begun = [held for held in self._begun if not held.ticket.done]
        return bool(done)

    # ------------------------------------------------------------------ what passes straight through

    def broadcast(self, buffer: Any, root: int, what: str) -> Ticket:
        return self._inner.broadcast(buffer, root, what)

    def sum(self, values: Any, what: str) -> Ticket:
        return self._inner.sum(values, what)

    def gather(self, mine: bytes, what: str) -> tuple[Ticket, Any]:
        return self._inner.gather(mine, what)

    def barrier(self, what: str) -> Ticket:
        return self._inner.barrier(what)

    def tell(self, peers: Iterable[int], notice: Notice) -> None:
        self._inner.tell(peers, notice)

    def notices(self) -> list[Notice]:
        return self._inner.notices()

    def refuse_if_stopped(self) -> None:
        self._inner.refuse_if_stopped()

    def close(self) -> None:
        self._inner.close()
