"""How a message moves: one protocol, MPI and n ranks in one process behind it."""

from __future__ import annotations

import sys
from typing import Any

from ..errors import ConfigurationError
from .background import Background
from .base import ANY, Notice, Ticket, Transport
from .loopback import LoopbackComm, LoopbackTransport

__all__ = ["ANY", "LoopbackComm", "Notice", "Ticket", "Transport", "check", "connect"]


def connect(comm: Any, *, background: bool = False) -> Transport:
    """Open a private transport over a communicator. Collective over its ranks.

    Args:
        comm: an mpi4py communicator, or what :func:`pushsum_opt.testing.run` hands to each rank.
        background: let a thread move messages while the caller computes, where the MPI library allows threads;
            elsewhere they move whenever the caller polls.

    Raises:
        ConfigurationError: ``comm`` is neither.
    """
    check(comm)
    transport = _open(comm)
    return Background(transport) if background and transport.threaded and transport.size > 1 else transport


def _open(comm: Any) -> Transport:
    if isinstance(comm, LoopbackComm):
        return LoopbackTransport(comm)
    from .mpi import MpiTransport

    return MpiTransport(comm)


def check(comm: Any) -> None:
    """Raise ConfigurationError unless ``comm`` is a communicator that :func:`connect` takes."""
    mpi = sys.modules.get("mpi4py.MPI")  # whoever has a communicator has imported it
    if isinstance(comm, LoopbackComm) or (mpi is not None and isinstance(comm, mpi.Intracomm)):
        return
    raise ConfigurationError(f"comm={comm!r}: expected an mpi4py communicator, or None for MPI.COMM_WORLD")
