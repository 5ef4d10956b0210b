"""The spares of a job, as the ranks that train see them: called when a rank is lost, taken in when they are ready."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from mpi4py import MPI

from . import words

__all__ = ["Bench"]

ANSWER_S = 10.0
"""Seconds in which a spare that is ready answers an invitation; it does nothing else meanwhile."""
NAP_S = 0.5e-3


class Bench:
    """All spares of a job. Each rank has one of these; only one rank at a time calls its methods that send.

    Args:
        size: the number of ranks that train.
    """

    def __init__(self, size: int) -> None:
        me = MPI.COMM_WORLD.Get_rank()
        self._spares = [one for one in range(size, MPI.COMM_WORLD.Get_size()) if one != me]
        self._called: dict[int, int] = {}  # place by process
        self._ready: dict[int, int] = {}
        self._coming: dict[int, str] = {}  # the invitation that each has accepted last
        self._left_out: set[int] = set()
        self._said = False

    def left(self, crew: Sequence[int]) -> list[int]:
        """Return the spares that live and do not train.

        Args:
            crew: the processes that train.
        """
        gone = words.dead() | set(crew) | self._left_out
        return [one for one in self._spares if one not in gone]

    def call(self, places: Sequence[int], crew: Sequence[int]) -> dict[int, int]:
        """Tell spares to take some places, in this order, unless they were told; return who was told now (by place)."""
        left = self.left(crew)
        self._called = {one: place for one, place in self._called.items() if one in left and place in places}
        told = {}
        free = [one for one in left if one not in self._called and one not in self._ready]
        for place in places:
            if place not in self._called.values() and free:
                one = free.pop(0)
                self._called[one] = place
                words.send(one, words.TO_SPARES, kind="come", place=place)
                told[place] = one
        return told

    def ready(self, places: Sequence[int], crew: Sequence[int]) -> dict[int, int]:
        """Return the spares that can be taken in now, by the places that they take."""
        self._listen()
        left = self.left(crew)
        return {place: one for one, place in self._ready.items() if one in left and place in places}

    def invite(self, one: int, processes: Sequence[int], ranks: Sequence[int], name: str) -> bool:
        """Tell a spare that is ready that it is to be taken in; return whether it comes.

        Args:
            processes: all that take part then.
            ranks: theirs.
            name: of the communicator that they make.
        """
        words.send(one, words.TO_SPARES, kind="invited", processes=list(processes), ranks=list(ranks), name=name)
        begin = time.monotonic()
        while one not in words.dead() and time.monotonic() - begin < ANSWER_S:
            self._listen()
            if self._coming.get(one) == name:
                return True
            time.sleep(NAP_S)
        return False

    def _listen(self) -> None:
        for sender, word in words.receive(words.TO_RANKS):
            if word["kind"] == "ready":
                # It has the first place that it was told, perhaps by a rank that has died since.
                self._ready[sender] = self._called[sender] = int(word["place"])
            else:
                self._coming[sender] = word["name"]

    def go(self, one: int, name: str) -> None:
        """Tell a spare that comes that all others come too."""
        words.send(one, words.TO_SPARES, kind="go", name=name)

    def leave_out(self, spares: Iterable[int]) -> None:
        """Call some spares no more: they cannot take part."""
        self._left_out.update(spares)

    def tell_crew(self, crew: Sequence[int]) -> None:
        """Tell the spares which processes train now: they end when those have ended."""
        for one in self.left(crew):
            words.send(one, words.TO_SPARES, kind="crew", processes=list(crew))

    def dismiss(self) -> None:
        """This process has ended its work. When all have, the spares end too. Idempotent."""
        if not self._said:
            self._said = True
            for one in self._spares:
                words.send(one, words.TO_SPARES, kind="over")
