"""Buffers that a transport may not touch yet: an accelerator still has to finish with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["DeviceBytes", "Event", "Late"]


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
class Late:
    """A buffer to send or to receive into, and the last thing that an accelerator does with it.

    Before a send that is the packing; before a receive, the last reader of what was received before.
    """

    data: Any
    last_use: Event | None

    def ready(self) -> bool:
        """Whether the transport may have it; never waits."""
        return self.last_use is None or self.last_use.query()
