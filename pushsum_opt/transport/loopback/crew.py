"""The ranks of one process that are still there."""

from __future__ import annotations

import time
from typing import Any, NoReturn

from ...log import log
from ..crew import CallsAreOver, Crew, Wait
from .comm import LoopbackComm
from .injection import Killed, Rendezvous, inject

__all__ = ["LoopbackCrew"]

LOOK_S = 1e-3


class LoopbackCrew(Crew):
    """See :class:`Crew`. Its meetings are objects that all ranks share."""

    def __init__(self, comm: LoopbackComm, ranks: tuple[int, ...], generation: int = 0) -> None:
        super().__init__(comm, ranks)
        self._generation = generation
        self._root, numbers = comm.world.of_the_job
        self._members = tuple(numbers)
        self._me = numbers[comm.rank]
        self._agreements = 0

    def revoke(self) -> None:
        for part in self.comm.process.parts:
            part.world.revoke_all()
        self.comm.process.parts.clear()
        for transport in list(self.comm.all_transports()):
            transport.revoke()

    def survivors(self, wait: Wait, committed: int) -> LoopbackCrew:
        meeting = self._meet("survivors", True, wait, committed)
        assert meeting.survivors is not None
        places = [self._members.index(member) for member in meeting.survivors]
        generation = self._generation + 1
        part = self._root.part((-1, generation), list(meeting.survivors))
        comm = LoopbackComm(part, meeting.survivors.index(self._me), self.comm.process)
        comm.clock = self.comm.clock
        return LoopbackCrew(comm, tuple(self.ranks[place] for place in places), generation)

    def say_over(self, committed: int) -> None:
        with self._root.lock:
            self._root.over[self._me] = committed

    def leave(self, why: str) -> NoReturn:
        log.warning("%s", why)
        self._root.kill(self._me)
        raise Killed(self._me)

    def agree(self, flag: bool) -> bool:
        self._agreements += 1

        def wait(left: Any) -> None:
            while left():
                time.sleep(LOOK_S)

        return self._meet(f"agreement {self._agreements}", flag, wait).agreed

    def _meet(self, what: str, value: Any, wait: Wait, committed: int | None = None) -> Rendezvous:
        inject(self.comm.world, self.comm.rank, "meet", what)
        root = self._root
        with root.lock:
            meeting = root.rendezvous.setdefault((self._generation, what), Rendezvous(self._members))
            meeting.values[self._me] = value
            meeting.complete(root.dead)

        def left() -> list[int]:
            self.comm.world.check(self.comm.rank)
            inject(self.comm.world, self.comm.rank, "poll", what)
            with root.lock:
                if meeting.survivors is not None:
                    return []
                if committed is not None and (most := max(root.over.values(), default=0)) > committed:
                    raise CallsAreOver(most)
                return [m for m in self._members if m not in root.dead and m not in meeting.values]

        wait(left)
        return meeting
