"""n ranks in one process, a thread each: for tests, and for trying things out without an MPI launcher.

It promises no more than MPI does. The bytes of a send are read when it completes, not when it is posted. Nothing larger
than a header completes before its receive is posted. A receive buffer holds 0xff bytes (nan) until its message is
there. With a seed, messages are late, and overtake each other between peers.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..clock import Clock, monotonic
from ..errors import ClosedError
from ..job.ending import Process
from .base import ANY, Notice, Ticket, Transport
from .injection import inject
from .loopback_world import LoopbackWorld, Transfer

__all__ = ["LoopbackComm", "LoopbackTransport"]

_transports: weakref.WeakKeyDictionary[Process, weakref.WeakSet[LoopbackTransport]] = weakref.WeakKeyDictionary()


class LoopbackComm:
    """One rank's communicator in a :class:`LoopbackWorld`; has ``rank`` and ``size`` as an MPI one does."""

    def __init__(self, world: LoopbackWorld, rank: int, process: Process | None = None) -> None:
        self.world = world
        self.process = Process() if process is None else process
        """What this rank has open; parts of a communicator share it."""
        self.process_transports = _transports.setdefault(self.process, weakref.WeakSet())
        self.rank = rank
        self.size = world.size
        self.clock: Clock = monotonic
        """The clock of what is opened over it from now on."""
        self.contexts = 0

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    @property
    def local_rank(self) -> int:
        """This rank's place among those that count as sharing its host."""
        return self.rank % self.world.local_size

    @property
    def local_size(self) -> int:
        """The number of ranks that count as sharing its host; the last host may have fewer."""
        return min(self.world.local_size, self.size - self.rank + self.local_rank)

    def all_transports(self) -> list[LoopbackTransport]:
        """Return what is open over this and over all other communicators of this rank."""
        return [transport for transport in self.process_transports if not transport.closed]

    def next_context(self) -> int:
        """Number the private duplicates; every rank makes them in the same order, as with MPI."""
        self.contexts += 1
        return self.contexts

    def __repr__(self) -> str:
        return f"LoopbackComm(rank={self.rank}, size={self.size})"


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
