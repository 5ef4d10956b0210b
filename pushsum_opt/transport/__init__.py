"""How a message moves: one protocol, MPI and n ranks in one process behind it."""

from __future__ import annotations

import sys
from typing import Any

from ..ending import THIS, Process
from ..errors import ConfigurationError
from ..memory import Memory
from .background import Background
from .base import ANY, Notice, Ticket, Transport
from .deferred import Deferred
from .groups import host_label, split
from .loopback import LoopbackComm, LoopbackTransport

__all__ = ["ANY", "LoopbackComm", "Notice", "Ticket", "Transport", "check", "connect", "host_label", "process", "split"]

DEVICE_PERIOD = 5e-4  # seconds: chunks wait for copies on the device, and the next ones for them


def connect(comm: Any, *, background: bool = False, memory: Memory | None = None) -> Transport:
    """Open a private transport over a communicator. Collective over its ranks.

    Args:
        comm: an mpi4py communicator, or what :func:`pushsum_opt.testing.run` hands to each rank.
        background: let a thread move messages while the caller computes, where the MPI library allows threads;
            elsewhere they move whenever the caller polls.
        memory: whose buffers will be sent; None where they are all on the host.

    Raises:
        ConfigurationError: ``comm`` is neither.
    """
    check(comm)
    if memory is not None:
        memory.prepare_thread()
    transport = _open(comm)
    if memory is not None and memory.late:
        transport = Deferred(transport)
    if not (background and transport.threaded and transport.size > 1):
        return transport
    if memory is None:
        return Background(transport)
    if memory.late:
        return Background(transport, memory.prepare_worker, period=DEVICE_PERIOD)
    return Background(transport, memory.prepare_worker)


def _open(comm: Any) -> Transport:
    if isinstance(comm, LoopbackComm):
        return LoopbackTransport(comm)
    from .mpi import MpiTransport

    return MpiTransport(comm)


def process(comm: Any) -> Process:
    """Return where this rank keeps what it has open."""
    return comm.process if isinstance(comm, LoopbackComm) else THIS


def check(comm: Any) -> None:
    """Raise ConfigurationError unless ``comm`` is a communicator that :func:`connect` takes."""
    mpi = sys.modules.get("mpi4py.MPI")  # whoever has a communicator has imported it
    if isinstance(comm, LoopbackComm) or (mpi is not None and isinstance(comm, mpi.Intracomm)):
        return
    raise ConfigurationError(f"comm={comm!r}: expected an mpi4py communicator, or None for MPI.COMM_WORLD")
