"""A communicator of one of n ranks in one process."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from ...clock import Clock, monotonic
from ...job.ending import Process
from .world import LoopbackWorld

if TYPE_CHECKING:
    from .transport import LoopbackTransport

__all__ = ["LoopbackComm"]

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
