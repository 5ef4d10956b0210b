"""What a memory hands to a transport beside plain host memory. Neither of the two needs to know the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["DeviceBytes", "Event", "PendingBuffer"]


class Event(Protocol):
    """A point in the work of an accelerator, as torch.cuda.Event has it."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class DeviceBytes:
    """Bytes in the memory of an accelerator, for an MPI library that can read and write them."""

    address: int
    nbytes: int
    owner: Any
    """What keeps the memory alive."""


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
