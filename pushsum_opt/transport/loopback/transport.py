"""Messages between n ranks in one process."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...errors import ClosedError
from ..base import ANY, Notice, Ticket, Transport
from .comm import LoopbackComm
from .injection import inject
from .world import LoopbackWorld, Transfer

__all__ = ["LoopbackTransport"]


class LoopbackTransport(Transport):
    """The transport of one rank in a :class:`LoopbackWorld`."""

    name = "loopback"
    threaded = concurrent = True

    def __init__(self, comm: LoopbackComm) -> None:
        self._world = comm.world
        self.context = comm.next_context()
        comm.process_transports.add(self)
        self._active: list[Ticket] = []
        self.closed = False
        self.rank = comm.rank
        self.size = comm.size
        self.clock = comm.clock
        root, ranks = comm.world.of_the_job
        if self.size > 1:
            self.progress = root.rolls[ranks[self.rank]].set_up(ranks)[1]

    @property
    def under_way(self) -> int:
        return sum(not ticket.done for ticket in self._active)

    def post(self, buffer: Any, peer: int, tag: int, what: str, matched: bool = False) -> Ticket:
        self._at("post", what, peer)
        ticket = Ticket(what, peer, buffer, sends=True)
        transfer = Transfer(ticket, _bytes(buffer), self.rank, matched)
        with self._open().lock:
            self._world.post((self.context, self.rank, peer, tag), transfer)
        self._active.append(ticket)
        return ticket

    def expect(self, buffer: Any, peer: int, tag: int, what: str) -> Ticket:
        self._at("expect", what, None if peer == ANY else peer)
        ticket = Ticket(what, peer, buffer)
        with self._open().lock:
            self._world.expect((self.context, peer, self.rank, tag), Transfer(ticket, _bytes(buffer), self.rank))
        self._active.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        with self._world.lock:
            self._world.cancel(ticket)
        self._active = [other for other in self._active if other is not ticket]

    def broadcast(self, buffer: Any, root: int, what: str) -> Ticket:
        return self._collective(f"broadcast from {root}", _bytes(buffer), what)

    def sum(self, values: Any, what: str) -> Ticket:
        return self._collective("sum", values, what)

    def gather(self, mine: bytes, what: str) -> tuple[Ticket, Any]:
        everyone = np.empty((self.size, len(mine)), np.uint8)
        return self._collective("gather", (np.frombuffer(mine, np.uint8), everyone), what), everyone

    def barrier(self, what: str) -> Ticket:
        return self._collective("barrier", None, what)

    def _collective(self, kind: str, value: Any, what: str) -> Ticket:
        self._at("collective", what)
        self.collectives += 1
        if self.progress is not None:
            self.progress.reach_collective(self.collectives)
        ticket = Ticket(what, None, value, collective=self.collectives)
        with self._open().lock:
            self._world.join((self.context, self.collectives), self.rank, kind, value, ticket)
        self._active.append(ticket)
        return ticket

    def poll(self, seconds: float) -> bool:
        world = self._world
        self._inject("poll", "")
        deadline = time.monotonic() + seconds
        with world.lock:
            while True:
                next_due = world.deliver(self.rank)
                if any(ticket.done for ticket in self._active):
                    self._active = [ticket for ticket in self._active if not ticket.done]
                    return True
                world.check(self.rank)
                world.check_alive(self.rank, self.context)
                wait_until = deadline if next_due is None else min(deadline, next_due)
                if world.of_the_job[0].dead or world.revoked:  # the news may be still on its way to this rank
                    wait_until = min(wait_until, time.monotonic() + 1e-3)
                left = wait_until - time.monotonic()
                if world.mailbox(self.context, self.rank) or time.monotonic() >= deadline:
                    return False
                world.awake[self.rank].wait(max(left, 0.0))

    def tell(self, peers: Iterable[int], notice: Notice) -> None:
        with self._world.lock:
            root, ranks = self._world.of_the_job
            if ranks[self.rank] in root.dead:
                return
            for peer in peers:
                if peer != self.rank:
                    self._world.mailbox(self.context, peer).append(notice)
                    self._world.awake[peer].notify_all()

    def notices(self) -> list[Notice]:
        with self._world.lock:
            mailbox = self._world.mailbox(self.context, self.rank)
            notices = list(mailbox)
            mailbox.clear()
        return notices

    def revoke(self) -> None:
        with self._world.lock:
            self._world.revoke(self.context)

    def close(self) -> None:
        self.closed = True

    def _at(self, operation: str, what: str, peer: int | None = None) -> None:
        """Begin an operation: this rank may die here, and the ranks that it needs may be dead."""
        self.refuse_if_stopped()
        self._inject(operation, what)
        if self._world.of_the_job[0].faults is not None:
            with self._world.lock:
                self._world.check_alive(self.rank, self.context, self.rank if operation == "collective" else peer)

    def _inject(self, operation: str, what: str) -> None:
        inject(self._world, self.rank, operation, what)

    def refuse_if_stopped(self) -> None:
        self._world.check(self.rank)

    def _open(self) -> LoopbackWorld:
        if self.closed:
            raise ClosedError(f"rank {self.rank}: the loopback transport is already closed")
        return self._world


def _bytes(buffer: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return any contiguous buffer as a flat uint8 array that shares its memory."""
    return np.frombuffer(buffer, np.uint8) if not isinstance(buffer, np.ndarray) else buffer.reshape(-1).view(np.uint8)
