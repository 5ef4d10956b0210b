"""Making a communicator that belongs to this library alone: a duplicate, for which all ranks have to come."""

from __future__ import annotations

from typing import Any

from mpi4py import MPI

from ...errors import RanksLost
from ..roll_call import Progress
from ..set_up import Forming, until_all_come
from ..waiting import Report
from .losses import FAULT_TOLERANT, hear_who_is_lost, who_is_lost
from .post import post_of_the_job, roll_of_the_job

__all__ = ["begin_barrier", "begun", "duplicate"]

EAGER_S = 0.05
"""Where a job outlives a rank, none naps for so long while a communicator is made: a death then crashes all ranks."""

begun: list[Any] = []
"""(communicator, request) of what MPI does with a communicator now; it cancels neither a duplication nor a barrier."""


def begin_barrier(comm: MPI.Comm) -> MPI.Request:
    """Begin what ranks wait in for each other before they duplicate a communicator that outlives a rank."""
    request = comm.Ibarrier()
    begun.append((comm, request))
    return request


def duplicate(comm: MPI.Comm, timeout: float, report: Report) -> tuple[MPI.Comm, Progress | None]:
    """Collective. Return a private duplicate, and what counts its progress in the roll call."""
    ranks = _ranks_of_the_job(comm)
    set_ups, progress = roll_of_the_job().set_up(ranks) if ranks and len(ranks) > 1 else (None, None)
    number = 0 if set_ups is None else roll_of_the_job().reached[f"{set_ups.channel} collectives"]
    try:
        if FAULT_TOLERANT and comm.Get_size() > 1:
            # Where a rank dies while a communicator is made, Open MPI 5.0 crashes on all others that make it (in
            # ompi_comm_revoke_local). So they wait for each other before it, and take no nap in it.
            request = begin_barrier(comm)
            until_all_come(Forming(comm.Get_rank(), set_ups, request.Test), timeout, report, number)
            begun.pop()
        made, request = comm.Idup()
        begun.append((made, request))
        eager_s = EAGER_S if FAULT_TOLERANT else 0.0
        until_all_come(Forming(comm.Get_rank(), set_ups, request.Test, eager_s=eager_s), timeout, report, number)
        begun.pop()
        post = post_of_the_job()
        if post.size > 1 and post.office is None and progress is not None and len(progress.ranks) == post.size:
            with roll_of_the_job().talking:
                post.open_office(lambda done: until_all_come(Forming(comm.Get_rank(), None, done), timeout, report))
    except MPI.Exception as error:
        if FAULT_TOLERANT:
            hear_who_is_lost(comm)
        if (lost := who_is_lost(comm, error)) is not None:
            raise RanksLost(f"rank {comm.Get_rank()}: {lost}") from error
        raise
    return made, progress


def _ranks_of_the_job(comm: MPI.Comm) -> list[int] | None:
    """Return a communicator's ranks in MPI.COMM_WORLD, or None where some are of another job (spawned)."""
    world, group = MPI.COMM_WORLD.Get_group(), comm.Get_group()
    ranks = list(group.Translate_ranks(list(range(group.Get_size())), world))
    world.Free()
    group.Free()
    return None if MPI.UNDEFINED in ranks else ranks
