"""The ranks of an MPI job that are still there, by the fault tolerance of MPI ("ULFM"; MPI 5 calls it so, too).

When a rank dies, MPI reports it to the others as an error of what waits for it. *Revoking* a communicator makes
everything on it fail on all ranks, so that no survivor waits for another one that has given up. *Shrinking* makes a
communicator of the survivors, the same on each of them.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NoReturn

from mpi4py import MPI

from ... import progress
from ...errors import ConfigurationError, RanksLost
from ...job import forked_end, training_ranks
from ...job.ending import THIS
from ...log import log
from ..crew import CallsAreOver, Crew, Wait
from .losses import FAULT_TOLERANT
from .transport import revoke_all

__all__ = ["MpiCrew", "open_mpi_crew"]

COME_TAG = 31990
WORD = struct.Struct("<q")
HERE = -1
"""What a rank says when it has come to a meeting; other words are those of :meth:`Crew.say_over`."""


class MpiCrew(Crew):
    """See :class:`Crew`."""

    def __init__(self, comm: MPI.Comm, ranks: tuple[int, ...]) -> None:
        super().__init__(comm, ranks)
        self._awaited: dict[int, tuple[MPI.Request, bytearray]] | None = None  # once this rank has come
        self.bench = training_ranks.bench()
        forked_end.watch_exit_codes()  # the end of this rank may need to know its own

    @cached_property
    def processes(self) -> tuple[int, ...]:
        mine, everyone = self.comm.Get_group(), MPI.COMM_WORLD.Get_group()
        found = tuple(mine.Translate_ranks(list(range(mine.Get_size())), everyone))
        mine.Free()
        everyone.Free()
        return found

    def grown(self, processes: Sequence[int], ranks: tuple[int, ...], name: str) -> MpiCrew:
        from ...spares.team import form

        try:
            return MpiCrew(form(processes, name), ranks)
        except MPI.Exception as error:
            raise RanksLost(f"a process has died while {name} was made: {error}") from error

    def revoke(self) -> None:
        for part in THIS.parts:
            with contextlib.suppress(MPI.Exception):
                if part != MPI.COMM_NULL:  # not freed
                    part.Revoke()
        THIS.parts.clear()
        revoke_all()

    def survivors(self, wait: Wait, committed: int) -> MpiCrew:
        # MPI's own meeting, in Shrink, waits without a deadline, and spins meanwhile. So first all tell all that they
        # are here: then Shrink has nobody to wait for.
        comm = self.comm
        if self._awaited is None:
            self._awaited = {}
            self._tell(HERE)
            for rank in self._others():
                self._listen(rank)
        awaited = self._awaited

        def left() -> list[int]:
            for rank, (request, word) in list(awaited.items()):
                try:
                    come = request.Test()
                except MPI.Exception:  # it has died
                    del awaited[rank]
                    continue
                if come:
                    said = WORD.unpack(word)[0]
                    del awaited[rank]
                    if said != HERE:
                        self._listen(rank)
                    if said > committed:
                        raise CallsAreOver(said)
            return [self.ranks[rank] for rank in awaited]

        wait(left)
        shrunk = comm.Shrink()
        shrunk.Set_errhandler(MPI.ERRORS_RETURN)
        before, after = comm.Get_group(), shrunk.Get_group()
        places = list(after.Translate_ranks(list(range(after.Get_size())), before))
        return MpiCrew(shrunk, tuple(self.ranks[place] for place in places))

    def say_over(self, committed: int) -> None:
        self._tell(committed)

    def _others(self) -> list[int]:
        return [rank for rank in range(self.comm.Get_size()) if rank != self.comm.Get_rank()]

    def _tell(self, said: int) -> None:
        word = bytearray(WORD.pack(said))
        for rank in self._others():
            with contextlib.suppress(MPI.Exception):  # it is known to be dead
                _kept.append((self.comm.Issend([word, MPI.BYTE], rank, COME_TAG), word))

    def _listen(self, rank: int) -> None:
        assert self._awaited is not None
        word = bytearray(WORD.size)
        with contextlib.suppress(MPI.Exception):
            self._awaited[rank] = self.comm.Irecv([word, MPI.BYTE], rank, COME_TAG), word

    def leave(self, why: str) -> NoReturn:
        log.warning("%s", why)
        progress.comes_to_its_end(self.ranks[self.comm.Get_rank()])
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)  # MPI_Finalize would wait for the others, which train

    def agree(self, flag: bool) -> bool:
        try:
            return bool(self.comm.Agree(int(flag)))
        except MPI.Exception:  # a rank has died since; MPI says so to all
            return False


_kept: list[Any] = []  # a send that fails must not be freed


def open_mpi_crew(comm: MPI.Comm) -> MpiCrew:
    """Return the ranks of a communicator.

    Raises:
        ConfigurationError: MPI, or how it was started, cannot survive the death of a rank.
    """
    missing = why_not()
    if missing is not None:
        raise ConfigurationError(
            f"rank {comm.Get_rank()}: on_loss='continue': {missing}. Start the job with `pushsum run --survive -np "
            f"{comm.Get_size()} python ...`, or with `mpirun --with-ft ulfm ...` of Open MPI 5"
        )
    spare = training_ranks.spare()
    if spare is None:
        return MpiCrew(comm, tuple(range(comm.Get_size())))
    crew = MpiCrew(comm, (spare.place,))
    crew.waits = True
    return crew


def why_not() -> str | None:
    """Return what keeps this job from surviving the death of a rank; None where nothing does."""
    if not hasattr(MPI.Comm, "Shrink"):
        return "this mpi4py is older than 4.1 and has no Comm.Shrink"
    if not FAULT_TOLERANT:
        library = MPI.Get_library_version().split(",")[0]
        return f"{library} was started without fault tolerance, so it ends the whole job when a rank dies"
    return None
