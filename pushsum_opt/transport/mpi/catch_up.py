"""Set-ups of channels over all ranks that some ranks have begun, and others have not.

MPI cannot take back a duplication of a communicator that has begun, and pairs duplications by their order. So where
some ranks have given one up, the others have to begin it too, before the next channel is made. Where a job outlives its
ranks, these wait in a barrier before each duplication: then that barrier is what has begun, and no duplication has.
"""

from __future__ import annotations

from collections.abc import Callable

from mpi4py import MPI

from ..roll_call import group_name
from .losses import FAULT_TOLERANT
from .making import begin_barrier, begun
from .post import roll_of_the_job

__all__ = ["catch_up", "set_ups"]


def set_ups() -> int:
    """Return how many channels over all ranks of the job this rank has begun to make."""
    return roll_of_the_job().reached.get(_key(), 0)


def catch_up(number: int) -> Callable[[], bool]:
    """Begin what this rank has not begun of the set-ups that the others have.

    Args:
        number: how many the other ranks have begun.

    Returns:
        Tells whether everything that this rank has begun is made.
    """
    for _ in range(set_ups(), number):
        if FAULT_TOLERANT:
            begin_barrier(MPI.COMM_WORLD)
        else:
            begun.append(MPI.COMM_WORLD.Idup())
    roll_of_the_job().reached[_key()] = number

    def made() -> bool:
        begun[:] = [one for one in begun if not one[1].Test()]
        return not begun

    return made


def _key() -> str:
    return f"{group_name(range(MPI.COMM_WORLD.Get_size()))} collectives"
