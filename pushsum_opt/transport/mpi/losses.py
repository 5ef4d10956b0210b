"""How MPI says that ranks have died, where a job outlives that."""

from __future__ import annotations

import contextlib
import os
import time

from mpi4py import MPI

from ...errors import RanksLost

__all__ = ["FAULT_TOLERANT", "can_be_freed", "hear_who_is_lost", "lost_by", "who_is_lost"]

FAULT_TOLERANT = os.environ.get("OMPI_MCA_mpi_ft_enable", "0").lower() in ("1", "true")  # noqa: SIM112
"""Whether the job outlives a rank: ``mpirun --with-ft ulfm`` of Open MPI says so to all. Then a message counts as sent
only once it is being received: Open MPI calls small ones sent earlier, and frees them."""

LOST = {
    getattr(MPI, name) for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED") if hasattr(MPI, name)
}
"""Classes of errors by which an MPI with fault tolerance says that ranks have died."""

HEAR_S = 1.0
"""Seconds that MPI has to say who has died, where it has other errors first."""


def who_is_lost(comm: MPI.Comm, error: MPI.Exception) -> str | None:
    """Return in words that ranks have died, where an error says so."""
    if not LOST:
        return None
    try:
        dead = comm.Get_failed()
        ranks = list(dead.Translate_ranks(list(range(dead.Get_size())), comm.Get_group()))
        revoked = comm.Is_revoked()
    except MPI.Exception:
        ranks, revoked = [], False
    if ranks:
        return f"rank {', '.join(map(str, ranks))} has died"
    if revoked or error.Get_error_class() in LOST:
        return "another rank says that ranks have died"
    return None


def lost_by(comm: MPI.Comm, error: Exception) -> RanksLost | None:
    """Return an error of MPI as RanksLost, where it says that ranks have died."""
    lost = who_is_lost(comm, error) if isinstance(error, MPI.Exception) else None
    return None if lost is None else RanksLost(f"rank {comm.Get_rank()}: {lost}")


def hear_who_is_lost(comm: MPI.Comm) -> None:
    """Wait a moment for MPI to say who has died: where it makes a communicator, it has other errors first."""
    begin = time.monotonic()
    while time.monotonic() - begin < HEAR_S and not comm.Get_failed().Get_size():
        with contextlib.suppress(MPI.Exception):
            comm.Iprobe()
        time.sleep(1e-3)


def can_be_freed(comm: MPI.Comm) -> bool:
    """Tell whether MPI runs, and no rank of a communicator has died: all of them have to come to free it."""
    return not MPI.Is_finalized() and not (FAULT_TOLERANT and (comm.Is_revoked() or comm.Get_failed().Get_size()))
