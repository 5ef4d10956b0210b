"""How a message moves: one protocol; MPI, torch.distributed and n ranks in one process behind it."""

from __future__ import annotations

from typing import Any

from ..job.ending import THIS, Process
from .base import ANY, Notice, Ticket, Transport
from .calls import calling
from .crew import CallsAreOver, Crew
from .groups import host_label, split
from .loopback import LoopbackComm, LoopbackTransport
from .opening import check, connect, open_crew
from .set_up import TIMEOUT

__all__ = [
    "ANY",
    "TIMEOUT",
    "CallsAreOver",
    "Crew",
    "LoopbackComm",
    "LoopbackTransport",
    "Notice",
    "Ticket",
    "Transport",
    "calling",
    "check",
    "connect",
    "host_label",
    "open_crew",
    "process",
    "split",
]


def process(comm: Any) -> Process:
    """Return where this rank keeps what it has open."""
    return comm.process if isinstance(comm, LoopbackComm) else THIS
