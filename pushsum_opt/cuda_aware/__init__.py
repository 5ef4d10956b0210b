"""Finds out by a trial whether MPI takes GPU memory. The trial is a job of its own, so a crash of it does no harm.

An MPI library may say that it takes GPU memory, and crash; or say that it does not, and do it through UCX. So two
processes send real buffers to each other, check what came, and measure the time; then the same through host memory. The
result is kept for this host and this MPI, and the faster way is used.
"""

from __future__ import annotations

import sys
from typing import Any

from .. import settings
from ..errors import ConfigurationError
from ..job import joined
from ..job.process_groups import GroupComm
from ..log import log
from .over_torch import judge_nccl
from .trial import Facts, TrialVerdict, judge, try_out

__all__ = ["TrialVerdict", "judge", "judge_nccl", "takes_device_memory", "try_out"]

_said = False
_said_changed = False
_found: Facts | None = None


def takes_device_memory(comm: Any) -> bool:
    """Tell whether the transport over a communicator is given GPU memory. Local; the first call takes some seconds.

    ``PUSHSUM_CUDA_AWARE=1`` or ``0`` answers without a trial. Rank 0 says once which way is taken, and how fast it is;
    a rank that changed CUDA_VISIBLE_DEVICES after MPI was started warns of it once.

    Raises:
        ConfigurationError: NCCL is to move it, and cannot be loaded.
    """
    if isinstance(comm, GroupComm):
        return _nccl_takes_it(comm)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not isinstance(comm, mpi.Intracomm):
        return False  # ranks of one process
    _say_changed_devices(int(mpi.COMM_WORLD.Get_rank()))
    if comm.Get_size() == 1:
        return False  # nothing is sent
    verdict = judge(settings.read().cuda_aware, _try_out_once)
    if mpi.COMM_WORLD.Get_rank() == 0:
        _say(verdict)
    return verdict.direct


def _try_out_once() -> Facts:
    """Return what a trial found. A process asks once, even where the trial failed and could be repeated."""
    global _found
    if _found is None:
        _found = try_out()
    return _found


def _nccl_takes_it(comm: GroupComm) -> bool:
    if comm.size == 1:
        return False  # nothing is sent
    try:
        verdict = judge_nccl(settings.read().nccl)
    except ConfigurationError as error:
        raise ConfigurationError(f"rank {comm.job.rank}: {error}") from error
    if comm.job.rank == 0:
        _say(verdict)
    return verdict.direct


def _say(verdict: TrialVerdict) -> None:
    global _said
    if not _said:
        _said = True
        log.info("GPU memory: %s", verdict.why)
        if verdict.advice:
            log.warning("GPU memory: %s", verdict.advice)


def _say_changed_devices(rank: int) -> None:
    global _said_changed
    changed = joined.changed_devices()
    if changed is None or _said_changed:
        return
    _said_changed = True
    then, now = ("not set" if value is None else repr(value) for value in changed)
    log.warning(
        "rank %d: CUDA_VISIBLE_DEVICES was %s when MPI started and is %s now. MPI's CUDA transports (UCX) do not see "
        "the change, and CUDA itself sees it only where nothing had used it by then: this rank may compute on, or MPI "
        "may look at, another GPU than is meant. Set it before MPI starts (`import mpi4py.MPI`, ps.rank() and "
        "ps.local_rank() start it), or leave it alone and use ps.local_device()",
        rank,
        then,
        now,
    )
