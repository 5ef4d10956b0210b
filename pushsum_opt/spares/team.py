"""Communicators of some processes of a job, made by these alone: also where others have died, or are busy."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from mpi4py import MPI

from ..errors import PeerTimeout, RanksLost
from . import words

__all__ = ["form", "meet"]

TIMEOUT = 1800.0
"""Seconds that the ranks that train have to come to the first call that needs all of them."""
FORM_S = 20.0
"""Seconds that MPI has to make a communicator of processes that are all there."""
LONGEST_NAP_S = 5e-3
MEET_TAG = 31993


def form(members: Sequence[int], name: str) -> MPI.Intracomm:
    """Collective over some processes, all of which are here. Return a communicator of them, in this order.

    Args:
        members: their numbers in ``MPI.COMM_WORLD``.
        name: not used before by any of them.
    """
    everyone = MPI.COMM_WORLD.Get_group()
    group = everyone.Incl(list(members))
    with _limited():
        first = MPI.Intracomm.Create_from_group(group, f"pushsum_opt {name}", errhandler=MPI.ERRORS_RETURN)
    # Open MPI 5.0 takes all that are made in this way for one in its agreements on who has died; not so the duplicates.
    made = first.Dup()
    made.Set_errhandler(MPI.ERRORS_RETURN)
    _kept.append(first)
    return made


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """End the job where the block takes too long.

    When a process dies in the milliseconds in which the group forms, Open MPI 5.0 lets the others wait for ever.
    """
    timer = threading.Timer(FORM_S, _end_the_job)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end_the_job() -> None:
    print(
        f"pushsum_opt: process {MPI.COMM_WORLD.Get_rank()}: MPI did not make a communicator within {FORM_S:g} s: a "
        "process has died in that time. Ending all ranks; start again from a checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # an exit code other than 0 ends the job


def meet(members: Sequence[int]) -> None:
    """Collective over some processes. Return once all of them are here, which is not known before.

    Raises:
        RanksLost: one of them has died.
        PeerTimeout: one of them did not come.
    """
    me, first = MPI.COMM_WORLD.Get_rank(), members[0]
    others = list(members[1:]) if me == first else [first]
    here = [MPI.COMM_WORLD.Irecv([bytearray(1), MPI.BYTE], other, MEET_TAG) for other in others]
    if me != first:
        _tell(first)
    begin = time.monotonic()
    while left := [other for other, one in zip(others, here, strict=True) if not _has_come(one, me, other)]:
        waited = time.monotonic() - begin
        lost = sorted(words.dead() & set(members))
        if lost:
            raise RanksLost(f"rank {me}: rank {', '.join(map(str, lost))} has died before all ranks had met")
        if waited >= TIMEOUT:
            raise PeerTimeout(f"rank {me}: waited {waited:.0f} s for rank {', '.join(map(str, left))} to begin")
        time.sleep(min(LONGEST_NAP_S, 1e-4 + 0.01 * waited))
    if me == first:
        for other in others:
            _tell(other)


def _has_come(request: MPI.Request, me: int, other: int) -> bool:
    try:
        return bool(request.Test())
    except MPI.Exception:
        raise RanksLost(f"rank {me}: rank {other} has died before all ranks had met") from None


def _tell(other: int) -> None:
    word = bytearray(1)
    _kept.append((MPI.COMM_WORLD.Issend([word, MPI.BYTE], other, MEET_TAG), word))


_kept: list[object] = []
