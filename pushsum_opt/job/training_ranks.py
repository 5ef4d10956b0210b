"""Which ranks of an MPI job train: all of them, without the spares that wait and without those that were lost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .. import settings
from ..errors import LaunchError

__all__ = [
    "bench",
    "dismiss_spares",
    "has_spares",
    "latest",
    "others_live",
    "spare",
    "spares",
    "succeeds",
    "those_that_train",
    "when_called",
]

_team: Any = None  # in a job with spares: the communicator of the ranks that train
_spare: Any = None
_bench: Any = None
_when_called: list[Callable[[], None]] = []


def spares() -> int:
    """Return how many processes of this job were started as spares."""
    return settings.read().spares


def has_spares() -> bool:
    """Tell whether this job has spares."""
    return spares() > 0


def those_that_train(whole: Any) -> Any:
    """Return the communicator of those of a job that train; a spare waits, and gets its own."""
    global _team, _spare, _bench
    count = spares()
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
    from ..spares.bench import Bench

    if whole.Get_rank() < size:
        from ..spares.team import form, meet

        meet(range(size))
        _team = form(range(size), "start")
    else:
        from ..spares.waiting import Spare

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


def bench() -> Any:
    """Return the spares of this job; None where it has none, or where this rank has not asked for the others yet."""
    return _bench


def when_called(callback: Callable[[], None]) -> None:
    """Call a function in a spare when it is to take a rank's place."""
    _when_called.append(callback)


def dismiss_spares() -> None:
    """This rank has ended its work. When all ranks have, the spares end."""
    from ..spares.bench import Bench

    found = Bench(sys.modules["mpi4py.MPI"].COMM_WORLD.Get_size() - spares()) if _bench is None else _bench
    found.dismiss()


# ---------------------------------------------------------------------- the lost

_succeeded: list[tuple[Any, Any]] = []  # communicators of MPI that have lost ranks, and those of the survivors


def succeeds(old: Any, new: Any) -> None:
    """From now on a communicator of MPI stands for the ranks of another one: those of its ranks that are left."""
    _succeeded.append((old, new))


def latest(comm: Any) -> Any:
    """Return the communicator of those ranks that are left."""
    while (later := getattr(comm, "successor", None)) is not None:
        comm = later
    for old, new in _succeeded:  # in the order in which they were made, so one pass is enough
        if comm == old:
            comm = new
    return comm


def others_live() -> bool:
    """Tell whether MPI knows of another process that trains and has not died. Only for an MPI that survives deaths."""
    mpi = sys.modules["mpi4py.MPI"]
    mine = latest(_team) if spares() and spare() is None else mpi.COMM_WORLD
    mine, everyone, failed = mine.Get_group(), mpi.COMM_WORLD.Get_group(), mpi.COMM_WORLD.Get_failed()
    processes = set(mine.Translate_ranks(list(range(mine.Get_size())), everyone))
    dead = set(failed.Translate_ranks(list(range(failed.Get_size())), everyone))
    for group in (mine, everyone, failed):
        group.Free()
    return len(processes - dead) > 1
