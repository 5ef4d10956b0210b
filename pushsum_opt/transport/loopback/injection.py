"""Deaths on purpose, for ranks of one process: which rank dies at which point of its work."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..calls import nested_calls

if TYPE_CHECKING:
    from .world import LoopbackWorld

__all__ = ["Faults", "Killed", "Moment", "Rendezvous", "inject"]


class Killed(BaseException):
    """This rank has been killed by :class:`Faults`. As a killed process would, it does nothing more: never catch it."""


@dataclass(frozen=True)
class Moment:
    """A point in the work of a rank: the ``count``-th operation of its transports that fits, from 1.

    >>> Moment(call="drain()", count=2)
    Moment(call='drain()', what='', operation='', count=2)
    """

    call: str = ""
    """Part of the names of the calls that are being made, such as ``"step()"``, ``"averaged()"`` or ``"recovery"``."""

    what: str = ""
    """Part of what is sent or awaited, such as ``"header"`` or ``"chunk"``."""

    operation: str = ""
    """"post", "expect", "poll", "collective", or, while survivors meet, "meet"; empty: any."""

    count: int = 1

    def fits(self, call: str, what: str, operation: str) -> bool:
        """Tell whether an operation is one of those that are counted."""
        return self.call in call and self.what in what and self.operation in ("", operation)


@dataclass
class Faults:
    """Which ranks of :func:`pushsum_opt.testing.run` die, and when.

    A rank that dies does so inside an operation of its transport, and nothing that it does afterwards reaches others.
    The others notice one after another, within ``spread`` seconds.

    Args:
        kill: the moment of each rank that dies.
        spread: the longest time until a rank notices, in seconds.
        seed: of the delays.

    >>> Faults({2: Moment(call="step()", what="header", count=3)}).kill[2].count
    3
    """

    kill: Mapping[int, Moment]
    spread: float = 2e-3
    seed: int = 0
    died: list[int] = field(default_factory=list)
    """The ranks that have died, in that order."""

    _counts: dict[int, int] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def due(self, rank: int, operation: str, what: str) -> bool:
        """Count an operation of a rank, and tell whether it dies there."""
        moment = self.kill.get(rank)
        if moment is None or not moment.fits(nested_calls(), what, operation):
            return False
        with self._lock:
            self._counts[rank] = self._counts.get(rank, 0) + 1
            if self._counts[rank] != moment.count:
                return False
            self.died.append(rank)
            return True

    def latency(self, rank: int, event: int) -> float:
        """Return after how many seconds a rank hears of something; the same whenever it is asked."""
        return random.Random(f"{self.seed} {rank} {event}").uniform(0.0, self.spread)


class Rendezvous:
    """A meeting of all members that are alive, whose result is the same for each of them, whoever dies meanwhile."""

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self.values: dict[int, Any] = {}
        self.survivors: tuple[int, ...] | None = None
        """The members that came, once all that are alive have."""
        self.agreed = False
        """Then: whether all members live, and passed True."""

    def complete(self, dead: Mapping[int, Any]) -> None:
        """Fix the result if all that are alive have come."""
        alive = tuple(member for member in self.members if member not in dead)
        if self.survivors is None and alive and all(member in self.values for member in alive):
            self.survivors = alive
            self.agreed = alive == self.members and all(self.values[member] for member in alive)


def inject(world: LoopbackWorld, rank: int, operation: str, what: str) -> None:
    """Let a rank die in an operation, where that is due; every further operation of a dead rank ends at once, too.

    Raises:
        Killed: it has died.
    """
    root, ranks = world.of_the_job
    if root.faults is None:
        return
    me = ranks[rank]
    if me in root.dead:
        raise Killed(me)
    if root.faults.due(me, operation, what):
        root.kill(me)
        raise Killed(me)
