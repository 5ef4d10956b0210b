"""What a memory hands to a transport beside plain host memory. Neither of the two needs to know the other."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Accelerator", "DeviceBytes", "Event", "PendingBuffer"]


class Event(Protocol):
    """A point in the work of an accelerator, as torch.cuda.Event has it."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class Accelerator(Protocol):
    """What a thread does that works with an accelerator's memory."""

    def in_use(self) -> AbstractContextManager[None]:
        """Make this the device of the calling thread inside the block; afterwards it has the one that it had."""

    def let_captures_be(self) -> None:
        """Let the calling thread, which is not the caller's, ask events while others capture their work as a graph."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceBytes:
    """Bytes in the memory of an accelerator, for MPI or NCCL to read and to write."""

    address: int
    nbytes: int
    owner: Any
    """What keeps the memory alive."""
    device: Accelerator


@dataclass(frozen=True, slots=True, eq=False)
class PendingBuffer:
    """A buffer to send or to receive into that an accelerator may still be using.

    Before a send the accelerator packs it; before a receive it reads what was received there the last time.
    """

    data: Any
    last_use: Event | None
    """When the accelerator has finished with it; None: it has."""

    def ready(self) -> bool:
        """Whether the transport may have it; never waits."""
        return self.last_use is None or self.last_use.query()
