"""How a process ends: what is still open is closed, in the order in which it was made, before MPI goes away.

A push-sum is held here until it is closed. So what is open is the same on every rank, whatever the garbage collector
does, and ranks can close at the end without agreeing first. A forked child has no part in MPI: its end does nothing
here.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Protocol

from .. import progress, settings
from ..errors import PeerFailed, PushSumError
from ..exit_codes import INTERRUPTED
from . import joined, training_ranks, world

__all__ = [
    "THIS",
    "Member",
    "Process",
    "abort",
    "fail_all",
    "is_of_one_rank",
    "stop_all_on_error",
    "when_all_is_closed",
    "when_stopped",
    "when_the_end_begins",
]

SETTLE_S = 0.05
"""Between the ends of two ranks that have failed at the same time."""
GRACE_S = 2.0
"""How long a rank that was ended by PeerFailed waits before it aborts: so the rank with the real error prints first."""


class Member(Protocol):
    """What is registered: one rank of a push-sum."""

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class Process:
    """What one rank has made and not closed, oldest first: the same on every rank, in the same order."""

    def __init__(self) -> None:
        self._members: list[Any] = []
        self.parts: list[Any] = []
        """Communicators of some of the ranks that were made: where ranks die, a rank of these may wait for this one."""
        self.survival: Any = None
        """What this rank does when others have died, where it is to go on; see :mod:`pushsum_opt.push_sum`."""

    def register(self, member: Member) -> None:
        self._members = [*self.members, member]

    def forget_closed(self) -> None:
        """Let go of what is closed, and so of the tensors that it has exchanged."""
        self._members = self.members

    @property
    def members(self) -> list[Any]:
        return [member for member in self._members if not member.closed]


THIS = Process()
"""This process as a rank of an MPI job. Ranks of :func:`pushsum_opt.testing.run` have a process of their own each."""


def is_of_one_rank(error: BaseException) -> bool:
    """Tell whether an error concerns its rank alone: it is no interrupt, and not about what all ranks do together.

    Where survivors go on, other ranks are not told of it. They notice when it has ended this process.
    """
    return isinstance(error, Exception) and not isinstance(error, PushSumError)


def fail_all(error: BaseException) -> None:
    """Tell the other ranks that this one cannot go on with anything that is open; they stop with this reason."""
    for member in THIS.members:
        member.fail(error)


# ---------------------------------------------------------------------- the end of the program

_first: list[Callable[[], None]] = []
_last: list[Callable[[], None]] = []
_ended = False
_self_keyval: int | None = None


def when_the_end_begins(callback: Callable[[], None]) -> None:
    """Call a function at the end of the program, before anything is closed."""
    _first.append(callback)


def when_all_is_closed(callback: Callable[[], None]) -> None:
    """Call a function at the end of the program, when all is closed and MPI still runs; the newest function first."""
    if callback not in _last:
        _last.append(callback)


def _end() -> None:
    """Close what is open, once; every rank does so in the same order. MPI still runs."""
    global _ended
    if _ended or joined.is_forked() or not joined.job_runs():
        return
    _ended = True
    try:
        for callback in _first:
            callback()
        for member in THIS.members:
            member.close()  # a rank that still trains is told that this one has finished
        progress.comes_to_its_end(_rank())
        while _last:
            _last.pop()()
    except KeyboardInterrupt:
        _say_interrupted()
    except Exception as error:
        abort(error)


@atexit.register
def _at_exit() -> None:
    _end()
    if joined.is_forked():
        return
    if _self_keyval is not None and joined.mpi_runs():
        world.finalize_if_nobody_does()


def _rank() -> int:
    """Return the number of this rank when the job was started."""
    job = world.torch_job()
    if job is not None:
        return job.rank
    rank: int = sys.modules["mpi4py.MPI"].COMM_WORLD.Get_rank()
    return rank


def _end_before_finalize() -> None:
    """Make MPI_Finalize call :func:`_end` first, whoever calls it: it begins by freeing what MPI_COMM_SELF carries."""
    global _self_keyval
    if _self_keyval is None:
        from mpi4py import MPI

        _self_keyval = MPI.Comm.Create_keyval(delete_fn=lambda comm, keyval, value: _end())
        MPI.COMM_SELF.Set_attr(_self_keyval, True)


# ---------------------------------------------------------------------- errors


def abort(error: BaseException) -> NoReturn:
    """End the whole job because of an error that can no longer be raised, after printing it."""
    if isinstance(error, PeerFailed):
        time.sleep(GRACE_S)
    if not isinstance(error, PushSumError):
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    print(f"pushsum_opt: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    _end_all(1, _reason(error))


def _reason(error: BaseException) -> str:
    """Return what other ranks are told: of a rank that only follows another one, that one's reason, once."""
    if isinstance(error, PeerFailed):
        return str(error).removeprefix(f"rank {_rank()}: ").split(". See what rank")[0]
    return f"{type(error).__name__}: {error}"


def _say_interrupted() -> NoReturn:
    print(f"pushsum_opt: rank {_rank()} interrupted", file=sys.stderr, flush=True)
    _end_all(INTERRUPTED, "interrupted")


def _leave_alone(mpi: Any, me: int) -> None:
    """End this rank so that the others go on without it. Returns where no other one is left."""
    print(
        f"pushsum_opt: rank {me} failed with the error above; the others go on without it", file=sys.stderr, flush=True
    )
    # Where all ranks have the same error, the last one that is left ends the job, with exit code 1.
    begin = time.monotonic()
    while time.monotonic() - begin < 0.2 + SETTLE_S * me:
        with contextlib.suppress(mpi.Exception):
            mpi.COMM_WORLD.Iprobe()  # MPI hears of deaths only while it is called
        time.sleep(SETTLE_S / 10)
    if training_ranks.others_live():
        os.kill(os.getpid(), signal.SIGKILL)  # an exit code other than 0 would end the whole job


def _is_spare(error: BaseException) -> bool:
    """Tell whether an error is of a spare that the others have not taken in: they can go on without it."""
    return training_ranks.spare() is not None and isinstance(error, Exception)


_when_stopped: list[Callable[[str], None]] = []


def when_stopped(callback: Callable[[str], None]) -> None:
    """Call a function with the reason when this rank ends the whole job because of an error."""
    _when_stopped.append(callback)


def _end_all(code: int, reason: str) -> NoReturn:
    for callback in _when_stopped:  # torch.distributed cannot end other processes: they hear why, and end by themselves
        callback(reason)
    time.sleep(0.2)  # the launcher needs time to pass on what was printed: otherwise it is lost with the ranks
    if world.torch_job() is None:
        sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)  # with MPICH, Abort may return while the launcher is still ending the ranks


_hooked = False
training_ranks.when_called(lambda: stop_all_on_error())


def stop_all_on_error() -> None:
    """End the whole job when an exception on this rank is not caught, after its traceback. Idempotent.

    Without it the other ranks would wait for this one until their deadlines. ``PUSHSUM_ABORT_ON_ERROR=0`` leaves
    uncaught exceptions alone. From the first call on, the end of the program closes what is open.
    """
    global _hooked
    if _hooked or not joined.job_runs():  # ranks of one process need none of this
        return
    _hooked = True
    job = world.torch_job()
    if job is None:
        _end_before_finalize()
    progress.starts(_rank())
    size = job.size if job is not None else sys.modules["mpi4py.MPI"].COMM_WORLD.Get_size()
    if size == 1 or not settings.read().abort_on_error:
        return
    previous = sys.excepthook

    def report_and_abort(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if joined.is_forked() or not joined.job_runs():  # no rank waits for a child, and none after the end of MPI
            previous(kind, error, trace)
            return
        if isinstance(error, PeerFailed):
            time.sleep(GRACE_S)
        if issubclass(kind, KeyboardInterrupt):
            _say_interrupted()
        previous(kind, error, trace)
        me = _rank()
        if (THIS.survival is not None and is_of_one_rank(error)) or _is_spare(error):
            _leave_alone(sys.modules["mpi4py.MPI"], me)
        print(f"pushsum_opt: rank {me} failed with the error above; ending all ranks", file=sys.stderr, flush=True)
        _end_all(1, _reason(error))

    sys.excepthook = report_and_abort
