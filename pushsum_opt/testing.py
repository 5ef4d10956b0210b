"""n ranks in one process: for tests, and to try things out without an MPI launcher."""

from __future__ import annotations

import ctypes
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from .errors import PeerFailed, PushSumError
from .job.world import work_as
from .transport.loopback import LoopbackComm as LoopbackComm  # the form in which type checkers let a user name them
from .transport.loopback.injection import Faults as Faults
from .transport.loopback.injection import Killed
from .transport.loopback.injection import Moment as Moment
from .transport.loopback.world import Delays as Delays
from .transport.loopback.world import LoopbackWorld

__all__ = ["Faults", "Moment", "RankErrors", "run"]

Result = TypeVar("Result")

ALL = -1
"""As the rank that failed: the run as a whole."""

GRACE_S = 3.0
"""Seconds that ranks have to stop by themselves, and again after they were interrupted."""
LOOK_S = 1e-3
"""Between looks whether they have."""


class RankErrors(PushSumError):
    """Some ranks of :func:`run` failed.

    Attributes:
        errors: the exceptions by rank; those that only followed another rank's failure are left out.
    """

    def __init__(self, errors: dict[int, BaseException], text: str) -> None:
        super().__init__(text)
        self.errors = errors


def run(
    size: int,
    function: Callable[[LoopbackComm], Result],
    *,
    seed: int | None = None,
    spread: float = 2e-3,
    delays: Delays | None = None,
    local_size: int | None = None,
    timeout: float = 120.0,
    faults: Faults | None = None,
) -> list[Result]:
    """Run ``function(comm)`` on ``size`` ranks, a thread each, and return their results in rank order.

    In the thread of a rank, ``ps.rank()``, ``ps.size()`` and whatever is called without ``comm=`` mean that rank, as in
    a process that mpirun started. Threads that it starts itself need ``comm=``.

    Args:
        size: number of ranks, >= 1.
        function: what each rank does; its argument is the rank's communicator.
        seed: make messages late at random, and overtake each other between peers; the same seed gives the same delays
            for the same messages only as far as the threads run alike.
        spread: the most that a message is late with a seed, in seconds.
        delays: prescribe how late each message is: (sender, receiver, messages sent before on this way) -> seconds.
        local_size: how many consecutive ranks count as sharing a host; None: all of them.
        timeout: seconds for the whole run.
        faults: which ranks die when; the result of one that has died is None.

    Raises:
        RankErrors: a rank failed; holds every exception, and shows every traceback.
        TimeoutError: a rank did not end in time.

    All ranks have stopped when this returns or raises, also by Ctrl-C: a rank stops at its next call of this library,
    or else is interrupted. Only one that hangs in foreign code goes on. What ranks leave open is closed.

    >>> run(3, lambda comm: comm.rank * 10)
    [0, 10, 20]
    """
    if size < 1:
        raise ValueError(f"size={size}: expected at least 1")
    world = LoopbackWorld(size, seed=seed, spread=spread, delays=delays, local_size=local_size, faults=faults)
    comms = [LoopbackComm(world, rank) for rank in range(size)]
    results: dict[int, Result] = {}
    errors: dict[int, BaseException] = {}

    def one_rank(rank: int) -> None:
        try:
            work_as(comms[rank])
            results[rank] = function(comms[rank])
            if (survival := comms[rank].process.survival) is not None:
                survival.say_over()
        except Killed:
            results.pop(rank, None)
        except BaseException as error:
            errors[rank] = error
            world.fail(rank, f"{type(error).__name__}: {error}")
        finally:
            if rank not in world.dead:
                world.end(rank)

    threads = [threading.Thread(target=one_rank, args=(r,), name=f"rank {r}", daemon=True) for r in range(size)]
    late: list[int] = []
    try:
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
        if late:
            world.fail(ALL, f"the run took longer than {timeout:g} s")
    except BaseException as error:  # Ctrl-C above all: no rank may go on behind the caller's back
        world.fail(ALL, f"the run was interrupted by {type(error).__name__}")
        raise
    finally:
        _stop(threads)
        for comm in comms:
            _release(comm)
    causes = {rank: error for rank, error in sorted(errors.items()) if not isinstance(error, PeerFailed)}
    causes = {rank: error for rank, error in causes.items() if rank not in late} or ({} if late else errors)
    if causes:
        text = "\n".join(f"rank {r} of {size}:\n{_trace(error)}" for r, error in causes.items())
        raise RankErrors(causes, text) from next(iter(causes.values()))
    if late:
        raise TimeoutError(f"ranks {late} of {size} did not end within {timeout:g} s")
    return [results.get(rank) for rank in range(size)]  # type: ignore[misc]  # None only with faults


def _stop(threads: list[threading.Thread]) -> None:
    """Wait until the ranks have stopped; those that never call this library are interrupted, as by Ctrl-C."""
    started = [thread for thread in threads if thread.ident is not None]
    if _ended(started, GRACE_S):
        return
    for thread in started:
        if _runs(thread) and thread.ident is not None:
            interrupt = ctypes.py_object(KeyboardInterrupt)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), interrupt)
    _ended(started, GRACE_S)


def _ended(threads: list[threading.Thread], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(_runs, threads)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_S)
    return True


def _runs(thread: threading.Thread) -> bool:
    """Tell whether a thread runs. Not by is_alive(): Python 3.11 takes one for ended whose join() was interrupted."""
    return thread in threading.enumerate()


def _release(comm: LoopbackComm) -> None:
    """End what a rank has left open: its threads above all. Nothing is merged: the run is over."""
    for member in comm.process.members:
        member.give_up()


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
