"""Opening a transport over a communicator, whatever carries its messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ConfigurationError, RanksLost
from ..job.process_groups import GroupComm, is_group
from .background import HOST_PERIOD_S, Background
from .base import Transport
from .crew import Crew
from .deferred import Deferred
from .loopback import LoopbackComm, LoopbackTransport
from .loopback.crew import LoopbackCrew
from .set_up import TIMEOUT, LogStalls, compare_calls
from .waiting import Report

__all__ = ["check", "connect", "open_crew"]

ACCELERATOR_PERIOD_S = 5e-4
"""Between two polls of the thread where chunks wait for copies on an accelerator."""


def connect(
    comm: Any,
    *,
    background: bool = False,
    prepare: Callable[[], None] = lambda: None,
    pending_buffers: bool = False,
    timeout: float = TIMEOUT,
    ranks: Sequence[int] | None = None,
    report: Report | None = None,
) -> Transport:
    """Open a private transport over a communicator. Collective over its ranks.

    Args:
        comm: an mpi4py communicator, the ranks of a process group, or what :func:`pushsum_opt.testing.run` hands to
            each rank.
        background: let a thread move messages while the caller computes, where the MPI library allows that (at thread
            level MULTIPLE); elsewhere they move whenever the caller polls.
        prepare: called by that thread before it first talks to MPI: it chooses the thread's accelerator.
        pending_buffers: some buffers will be a :class:`~pushsum_opt.buffers.PendingBuffer`.
        timeout: seconds that the other ranks have to do the same.
        ranks: its ranks as the user knows them, for errors; None: by their own numbers.
        report: told of waits and stalls; None: stalls are logged.

    Raises:
        ConfigurationError: ``comm`` is neither.
        PeerTimeout: some rank did not come; the error names it where that is known.
        PeerFinished: a rank has ended its program.
        MismatchError: a rank makes another call.
    """
    check(comm)
    report = LogStalls(comm.Get_rank() if ranks is None else ranks[comm.Get_rank()]) if report is None else report
    transport = _open(comm, timeout, report)
    transport.ranks = ranks
    if transport.size > 1:
        try:
            compare_calls(transport, timeout, report)
        except RanksLost:
            raise  # the recovery revokes it: others may wait on it for this rank
        except BaseException:  # nobody else has it, so nobody else could close it
            transport.close()
            raise
    if pending_buffers:
        transport = Deferred(transport)
    if not (background and transport.concurrent and transport.size > 1):
        return transport
    return Background(transport, prepare, period=ACCELERATOR_PERIOD_S if pending_buffers else HOST_PERIOD_S)


def open_crew(comm: Any) -> Crew:
    """Collective. Return the ranks of a communicator as a crew that can lose some of them.

    Raises:
        ConfigurationError: the MPI library, or the way in which it was started, cannot survive the death of a rank.
    """
    if isinstance(comm, LoopbackComm):
        return LoopbackCrew(comm, tuple(range(comm.size)))
    if isinstance(comm, GroupComm):
        raise ConfigurationError(
            f"rank {comm.Get_rank()}: on_loss='continue' and torch.distributed ({comm.job.why}) do not go together: "
            "its ranks cannot go on without one that has died. Start with `pushsum run --survive`, over MPI; or let "
            "torchrun start all ranks again (--max-restarts), and a checkpoint.Saver resume"
        )
    from .mpi.crew import open_mpi_crew

    return open_mpi_crew(comm)


def _open(comm: Any, timeout: float, report: Report) -> Transport:
    if isinstance(comm, LoopbackComm):
        return LoopbackTransport(comm)
    if isinstance(comm, GroupComm):
        from .torch_distributed import TorchTransport

        return TorchTransport(comm, timeout, report)
    from .mpi import MpiTransport

    return MpiTransport(comm, timeout, report)


def check(comm: Any) -> None:
    """Raise ConfigurationError unless ``comm`` is a communicator that :func:`connect` takes."""
    mpi = sys.modules.get("mpi4py.MPI")  # a program that has a communicator has imported it
    if isinstance(comm, LoopbackComm | GroupComm) or is_group(comm):
        return
    if mpi is not None and isinstance(comm, mpi.Comm) and comm == mpi.COMM_NULL:
        raise ConfigurationError(
            "comm= is MPI.COMM_NULL: this communicator was freed, or this rank does not belong to it (as after a Split "
            "with the color UNDEFINED). Only the ranks of a communicator make calls on it"
        )
    if mpi is not None and isinstance(comm, mpi.Intracomm):
        return
    raise ConfigurationError(
        f"comm={comm!r}: expected an mpi4py communicator, a process group of torch.distributed to which this rank "
        "belongs, or None for all ranks"
    )
