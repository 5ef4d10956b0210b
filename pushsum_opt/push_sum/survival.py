"""What a rank does when others have died: it stops with an error. :mod:`.continuing` has what goes on without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..errors import CallOrderError
from ..faults import Loss
from ..job import world
from .committing import nothing

__all__ = ["Survival"]

T = TypeVar("T")


class Survival:
    """``on_loss="stop"``: when ranks have died, what waits for them fails with RanksLost.

    Args:
        size: the number of ranks of the job.
    """

    continues = False
    epoch = 0
    """How often ranks were lost."""

    def __init__(self, size: int) -> None:
        self.ranks: tuple[int, ...] = tuple(range(size))
        """Those that take part, by their numbers when the job was started."""
        self.losses: list[Loss] = []
        self.hosts: dict[int, int] = {}
        """The host of each rank, where a host is one participant, and lost as a whole; empty: each rank for itself."""
        self.label: int | None = None
        """What this rank has in common with others of its host; None: not found out."""
        self.vacant: list[int] = []
        """Ranks that were lost and whose places no spare has taken, in the order in which they were lost."""
        self.on_change: list[Callable[[], None]] = []
        """Called once this rank can go on after a loss, or after spares were taken in."""

    @property
    def waits(self) -> bool:
        """Whether this is a spare that the other ranks have not taken in."""
        return False

    def refuse_while_waiting(self, call: str) -> None:
        """Raise CallOrderError for a call of all ranks, on a spare that the others have not taken in."""
        if self.waits:
            raise CallOrderError(world.told_to_wait(call))

    @property
    def me(self) -> int:
        """This rank, by its number when the job was started; -1 where a loss ends the job."""
        return -1

    def host_of(self, rank: int) -> tuple[str, int]:
        """Return what ranks of one host have in common, and no others."""
        return ("host", self.hosts[rank]) if rank in self.hosts else ("rank", rank)

    def lane_of(self, rank: int) -> int:
        """Return the place of a rank among those of its host, of those that take part."""
        return [one for one in self.ranks if self.host_of(one) == self.host_of(rank)].index(rank)

    def learn_hosts(self, labels: Sequence[int]) -> None:
        """Take note of which ranks share a host.

        Args:
            labels: one for each rank that takes part, equal on one host.

        Raises:
            RanksLost: hosts had lost ranks before; their other ranks end in this call, and are lost then.
        """

    @property
    def members_of_the_job(self) -> tuple[int, ...]:
        """Those that take part. A spare that waits does not know them: there, all ranks of the job."""
        return self.ranks

    def once(self, work: Callable[[], None]) -> None:
        """Do something that a loss ends, and that is not repeated afterwards: a round of gossip."""
        work()

    def say_over(self) -> None:
        """Tell the other ranks if nothing is open on this one any more."""

    def together(
        self,
        work: Callable[[], T],
        *,
        commit: Callable[[T], None] = nothing,
        undo: Callable[[T], None] = nothing,
    ) -> T:
        """Do something that all ranks do together; after a loss the survivors do it again, from its beginning.

        Args:
            work: what is done.
            commit: what is done on this rank once every rank has done its work; it is given the result.
            undo: what is done instead where ranks died and no rank knows that.
        """
        result = work()
        commit(result)
        return result
