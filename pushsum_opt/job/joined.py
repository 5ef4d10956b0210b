"""Whether this process has joined a job, of MPI or of torch.distributed, or was made by a fork of one that has."""

from __future__ import annotations

import os
import sys

from . import process_groups

__all__ = [
    "changed_devices",
    "forks",
    "is_forked",
    "job_runs",
    "joins",
    "mpi_runs",
    "parent",
    "remember_devices",
]


def mpi_runs() -> bool:
    """Tell whether MPI has been started in this process (or in the one that forked it) and has not ended."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and bool(mpi.Is_initialized()) and not mpi.Is_finalized()


def job_runs() -> bool:
    """Tell whether this process (or the one that forked it) is a rank of a job: of MPI, or of torch.distributed."""
    return process_groups.job_of_torch() is not None or mpi_runs()


# ---------------------------------------------------------------------- forks

_pid: int | None = None  # of the process that is a rank
_forks = 0
_forked = False


def _count_fork() -> None:
    global _forks, _forked
    _forks += 1
    _forked = _forked or job_runs()  # the user's own code may have started MPI


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def joins() -> None:
    """This process is a rank from now on."""
    global _pid
    if _pid is None:
        _pid = os.getpid()


def forks() -> int:
    """Return how many forks have led to this process: a child has one more than its parent.

    The process id is not used, because torch.compile cannot trace ``os.getpid``.
    """
    return _forks


def is_forked() -> bool:
    """Tell whether this process is a child, made by a fork, of a rank that had joined the others."""
    return _forked or (_pid is not None and os.getpid() != _pid)  # a fork in compiled code calls no Python hook


def parent() -> int:
    """Return the process id of the rank of which this process is a forked child."""
    return _pid or os.getppid()


# ---------------------------------------------------------------------- devices

DEVICES = "CUDA_VISIBLE_DEVICES"
_devices_at_start: tuple[str | None] | None = None  # what it was when MPI started, or as early after that as is known


def remember_devices() -> None:
    """MPI starts now: it does not see a later change of CUDA_VISIBLE_DEVICES."""
    global _devices_at_start
    if _devices_at_start is None:
        _devices_at_start = (os.environ.get(DEVICES),)


def changed_devices() -> tuple[str | None, str | None] | None:
    """Return CUDA_VISIBLE_DEVICES when MPI started, and now; None where both are the same.

    Where other code has started MPI, only changes after the import of this module are seen.
    """
    now = os.environ.get(DEVICES)
    if _devices_at_start is None or _devices_at_start == (now,):
        return None
    return _devices_at_start[0], now


if mpi_runs():  # started before this module was imported
    remember_devices()
