"""Which checkpoints there are in the memory of all hosts, and what is left of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..channel.agreement import listed
from .memory_file import About

__all__ = ["Generation", "best", "generations"]


@dataclass
class Generation:
    """The parts of one round that are left, on whatever hosts."""

    parts: dict[int, About] = field(default_factory=dict)
    """By the rank that saved it."""

    seen_by: dict[int, list[int]] = field(default_factory=dict)
    """The ranks of the present job that can read each part."""

    @property
    def _any(self) -> About:
        return next(iter(self.parts.values()))

    @property
    def name(self) -> tuple[str, int]:
        """(run, generation)."""
        return self._any.run, self._any.generation

    @property
    def size(self) -> int:
        """The ranks of the run that saved it."""
        return self._any.size

    @property
    def in_step(self) -> bool:
        """Whether the parts are of one round."""
        return self._any.in_step

    @property
    def participants(self) -> int:
        """n of the run that saved it: the sum of all mass."""
        return self.size // self._any.place[2]

    @property
    def round(self) -> int:
        """k of the parts; asynchronous ranks differ: the largest."""
        return max(about.round for about in self.parts.values())

    def usable(self) -> dict[int, About]:
        """Return the parts of participants that are whole: of a host, all ranks' parts are needed."""
        lanes = self._any.place[2]
        held = [about.place[0] for about in self.parts.values()]
        return {rank: about for rank, about in sorted(self.parts.items()) if held.count(about.place[0]) == lanes}

    @property
    def share(self) -> float:
        """How much of all data weight the parts that can be used stand for: 1 where none is missing."""
        firsts = [about.initial for about in self.usable().values() if about.place[1] == 0]
        return sum(firsts) / self.participants

    @property
    def mass(self) -> float:
        """The mass that the usable parts hold."""
        return sum(about.weight for about in self.usable().values() if about.place[1] == 0)

    @property
    def taken_back(self) -> float:
        """How much of it was in flight."""
        return sum(about.taken_back for about in self.usable().values() if about.place[1] == 0)

    def missing(self) -> list[int]:
        """Return the ranks whose parts are missing or cannot be used."""
        usable = self.usable()
        return [rank for rank in range(self.size) if rank not in usable]

    def described(self) -> str:
        """Say which round it is, and what of it is missing."""
        gone = self.missing()
        if not gone:
            return f"round {self.round} in memory, of which no part is missing"
        lost = 1.0 - self.mass / self.participants
        return (
            f"round {self.round} in memory, of which the parts of {listed(gone)} of {self.size} are missing, with "
            f"{lost:.4g} of the mass"
        )


def generations(seen: Sequence[Sequence[Any]]) -> list[Generation]:
    """Put together what each rank sees.

    Args:
        seen: by rank of the present job: what :func:`dataclasses.asdict` makes of an :class:`About`.
    """
    found: dict[tuple[str, int, int], Generation] = {}
    for reader, rows in enumerate(seen):
        for row in rows:
            about = About(**{**row, "place": tuple(row["place"])})
            generation = found.setdefault((about.run, about.generation, about.size), Generation())
            generation.parts.setdefault(about.rank, about)
            generation.seen_by.setdefault(about.rank, []).append(reader)
    return [one for one in found.values() if one.usable()]


def best(found: Sequence[Generation]) -> Generation | None:
    """Return the newest of those of which most is left: the newest one that all hosts have in common, if there is one.

    The newest of all may be one that a rank had not finished when it was killed.
    """
    return max(found, key=lambda one: (round(one.share, 9), one.round, one.name), default=None)
