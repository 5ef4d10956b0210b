"""What ranks wait for, and how far each has come: the numbers that a roll call is about."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .answering import RollCall

__all__ = ["WHEREVER", "Need", "Progress", "group_name"]

WHEREVER = ""
"""As the channel of a need: nothing is counted there, so an answer proves nothing. It says where the rank is."""


@dataclass(frozen=True, slots=True)
class Need:
    """What is waited for: that some ranks reach a number on a channel."""

    channel: str
    number: int
    ranks: tuple[int, ...]
    """Ranks of the whole job."""


def group_name(ranks: Iterable[int]) -> str:
    """Return a name for some ranks of the job, by which set-ups of channels over them are counted."""
    return hashlib.blake2b(repr(tuple(ranks)).encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the ranks of one communicator have come: what the roll call of the job asks about."""

    roll: RollCall
    channel: str
    ranks: tuple[int, ...]
    """Its ranks, as ranks of the whole job."""

    def reach_collective(self, number: int) -> None:
        """This rank has begun so many collectives."""
        self.roll.reach(f"{self.channel} collectives", number)

    def reach_round(self, number: int) -> None:
        """This rank has begun to exchange messages of so many rounds."""
        self.roll.reach(f"{self.channel} rounds", number)

    def heard(self, rank: int, round: int) -> None:
        """A message of a round has come from a rank."""
        self.roll.sent[self.ranks[rank]] = round, time.monotonic()

    def anything(self, rank: int) -> Need:
        """The wait for a rank to do what is not counted."""
        return Need(WHEREVER, 0, (self.ranks[rank],))

    def collective(self, number: int, rank: int | None = None) -> Need:
        """The wait for a collective, or for one rank to begin it."""
        return Need(f"{self.channel} collectives", number, self.ranks if rank is None else (self.ranks[rank],))

    def round(self, number: int, rank: int) -> Need:
        """The wait for a rank to exchange messages of so many rounds."""
        return Need(f"{self.channel} rounds", number, (self.ranks[rank],))
