"""The ranks of an MPI job that are still there, by the fault tolerance of MPI ("ULFM"; MPI 5 calls it so, too).

When a rank dies, MPI reports it to the others as an error of what waits for it. *Revoking* a communicator makes
everything on it fail on all ranks, so that no survivor waits for another one that has given up. *Shrinking* makes a
communicator of the survivors, the same on each of them.
"""

from __future__ import annotations

import contextlib

from mpi4py import MPI

from ..errors import ConfigurationError
from .crew import Crew, Wait
from .mpi import FAULT_TOLERANT, revoke_all

__all__ = ["MpiCrew", "open_mpi_crew"]

COME_TAG = 31990


class MpiCrew(Crew):
    """See :class:`Crew`."""

    def revoke(self) -> None:
        revoke_all()

    def survivors(self, wait: Wait) -> MpiCrew:
        # MPI's own meeting, in Shrink, waits without a deadline, and spins meanwhile. So first all tell all that they
        # are here: then Shrink has nobody to wait for.
        comm, me = self.comm, self.comm.Get_rank()
        others = [rank for rank in range(comm.Get_size()) if rank != me]
        word = bytearray(1)
        awaited = {}
        for rank in others:
            with contextlib.suppress(MPI.Exception):  # it is known to be dead
                _kept.append(comm.Issend([word, MPI.BYTE], rank, COME_TAG))
                awaited[rank] = comm.Irecv([bytearray(1), MPI.BYTE], rank, COME_TAG)

        def left() -> list[int]:
            for rank, request in list(awaited.items()):
                try:
                    come = request.Test()
                except MPI.Exception:  # it has died
                    come = True
                if come:
                    del awaited[rank]
            return [self.ranks[rank] for rank in awaited]

        wait(left)
        shrunk = comm.Shrink()
        shrunk.Set_errhandler(MPI.ERRORS_RETURN)
        before, after = comm.Get_group(), shrunk.Get_group()
        places = list(after.Translate_ranks(list(range(after.Get_size())), before))
        return MpiCrew(shrunk, tuple(self.ranks[place] for place in places))

    def agree(self, flag: bool) -> bool:
        try:
            return bool(self.comm.Agree(int(flag)))
        except MPI.Exception:  # a rank has died since; MPI says so to all
            return False


_kept: list[MPI.Request] = []


def open_mpi_crew(comm: MPI.Comm) -> MpiCrew:
    """Return the ranks of a communicator.

    Raises:
        ConfigurationError: MPI, or how it was started, cannot survive the death of a rank.
    """
    missing = why_not()
    if missing is not None:
        raise ConfigurationError(
            f"rank {comm.Get_rank()}: on_loss='continue': {missing}. Start the job with `pushsum run --survive -np "
            f"{comm.Get_size()} python ...`, or with `mpirun --with-ft ulfm ...` of Open MPI 5"
        )
    return MpiCrew(comm, tuple(range(comm.Get_size())))


def why_not() -> str | None:
    """Return what keeps this job from surviving the death of a rank; None where nothing does."""
    if not hasattr(MPI.Comm, "Shrink"):
        return "this mpi4py is older than 4.1 and has no Comm.Shrink"
    if not FAULT_TOLERANT:
        library = MPI.Get_library_version().split(",")[0]
        return f"{library} was started without fault tolerance, so it ends the whole job when a rank dies"
    return None
