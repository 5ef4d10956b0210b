"""n ranks in one process: for tests, and to try things out without an MPI launcher."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from .errors import PeerFailed, PushSumError
from .transport.loopback import Delays, LoopbackComm, LoopbackWorld

__all__ = ["RankErrors", "run"]

Result = TypeVar("Result")


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
) -> list[Result]:
    """Run ``function(comm)`` on ``size`` ranks, a thread each, and return their results in rank order.

    Args:
        size: number of ranks, >= 1.
        function: what each rank does; pass its argument on as ``comm=``.
        seed: make messages late at random, and overtake each other between peers; the same seed gives the same delays
            for the same messages only as far as the threads run alike.
        spread: the most that a message is late with a seed, in seconds.
        delays: prescribe how late each message is: (sender, receiver, messages sent before on this way) -> seconds.
        local_size: how many consecutive ranks count as sharing a host; None: all of them.
        timeout: seconds for the whole run.

    Raises:
        RankErrors: a rank failed; holds every exception, and shows every traceback.
        TimeoutError: a rank did not end in time.

    >>> run(3, lambda comm: comm.rank * 10)
    [0, 10, 20]
    """
    if size < 1:
        raise ValueError(f"size={size}: expected at least 1")
    world = LoopbackWorld(size, seed=seed, spread=spread, delays=delays, local_size=local_size)
    results: dict[int, Result] = {}
    errors: dict[int, BaseException] = {}

    def one_rank(rank: int) -> None:
        try:
            results[rank] = function(world.comm(rank))
        except BaseException as error:
            errors[rank] = error
            world.fail(rank, f"{type(error).__name__}: {error}")
        finally:
            world.end(rank)

    threads = [threading.Thread(target=one_rank, args=(r,), name=f"rank {r}", daemon=True) for r in range(size)]
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    if errors:
        causes = {rank: error for rank, error in sorted(errors.items()) if not isinstance(error, PeerFailed)} or errors
        text = "\n".join(f"rank {r} of {size}:\n{_trace(error)}" for r, error in causes.items())
        raise RankErrors(causes, text) from next(iter(causes.values()))
    if late:
        world.fail(late[0], "the run took too long")
        raise TimeoutError(f"ranks {late} of {size} did not end within {timeout:g} s")
    return [results[rank] for rank in range(size)]


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
