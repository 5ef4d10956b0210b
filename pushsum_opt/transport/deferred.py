"""Messages whose buffers an accelerator still uses: each begins as soon as the accelerator has finished."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from ..buffers import PendingBuffer
from .base import Ticket, Transport
from .wrapping import Wrapping

__all__ = ["Deferred"]

ACCELERATOR_POLL_PERIOD_S = 100e-6
"""Between two questions to an accelerator whether it has finished with a buffer."""

_Way = tuple[bool, int | None, int]


@dataclass(eq=False)
class _Held:
    """One transfer, from when it was asked for until it is done."""

    ticket: Ticket
    pending: PendingBuffer
    tag: int
    matched: bool
    inner: Ticket | None = None
    """The transfer below, once it has begun."""

    @property
    def way(self) -> _Way:
        """Transfers that must not overtake each other have the same."""
        return self.ticket.sends, self.ticket.peer, self.tag


class Deferred(Wrapping):
    """Any transport, for callers that never wait for an accelerator.

    ``post`` and ``expect`` return at once, also where the packing of the buffer, or the last reading of what was in it,
    is still to be done. Such a transfer begins at the first poll after that, and keeps its place among those between
    the same ranks with the same tag. Other buffers pass straight through.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        # Of transfers that must not overtake each other only the first can begin, so only its buffer is asked.
        self._waiting: dict[_Way, deque[_Held]] = {}
        self._begun: list[_Held] = []

    @property
    def under_way(self) -> int:
        return self._inner.under_way + sum(map(len, self._waiting.values()))

    # ------------------------------------------------------------------ messages

    def post(self, buffer: Any, peer: int, tag: int, what: str, matched: bool = False) -> Ticket:
        if not isinstance(buffer, PendingBuffer) and not self._would_overtake(True, peer, tag):
            return self._inner.post(buffer, peer, tag, what, matched)
        return self._hold(Ticket(what, peer, buffer, sends=True), tag, matched)

    def expect(self, buffer: Any, peer: int, tag: int, what: str) -> Ticket:
        if not isinstance(buffer, PendingBuffer) and not self._would_overtake(False, peer, tag):
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
        pending = ticket.buffer if isinstance(ticket.buffer, PendingBuffer) else PendingBuffer(ticket.buffer, None)
        held = _Held(ticket, pending, tag, matched)
        self._waiting.setdefault(held.way, deque()).append(held)
        self._begin_what_is_ready()
        return ticket

    def _begin_what_is_ready(self) -> bool:
        """Begin the transfers whose buffers are ready; tell whether there were any."""
        began = False
        for way, queue in list(self._waiting.items()):
            while queue and queue[0].pending.ready():
                held = queue.popleft()
                held.inner = self._begin(held)
                self._begun.append(held)
                began = True
            if not queue:
                del self._waiting[way]
        return began

    def _begin(self, held: _Held) -> Ticket:
        ticket = held.ticket
        assert ticket.peer is not None
        if ticket.sends:
            return self._inner.post(held.pending.data, ticket.peer, held.tag, ticket.what, held.matched)
        return self._inner.expect(held.pending.data, ticket.peer, held.tag, ticket.what)

    # ------------------------------------------------------------------ progress

    def poll(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            began = self._begin_what_is_ready()
            left = max(0.0, deadline - time.monotonic())
            waits = bool(self._waiting)
            moved = self._inner.poll(0.0 if began else min(left, ACCELERATOR_POLL_PERIOD_S) if waits else left)
            moved = self._finish() or moved or began
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
