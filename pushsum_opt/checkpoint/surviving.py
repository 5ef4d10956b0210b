"""What survivors of a loss do with the votes and the checkpoints in memory of a Saver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import progress
from ..push_sum import Follower, PushSum
from .in_memory import InMemory
from .votes import Votes

__all__ = ["Surviving"]


class Surviving(Follower):
    """See :class:`~pushsum_opt.push_sum.Follower`."""

    def __init__(self, push_sum: PushSum, votes: Votes, memory: InMemory | None) -> None:
        self._push_sum = push_sum
        self.votes = votes
        self.memory = memory
        self._is_new = push_sum.member.survival.waits  # a newcomer, until others have taken it in

    @property
    def has_newcomers(self) -> bool:  # type: ignore[override]
        return not self.votes.closed

    def report(self) -> Any:
        return {
            "votes": self.votes.report(),
            "memory": None if self.memory is None else self.memory.report(),
            "new": self._is_new,
        }

    def settle(self, reports: Sequence[Any]) -> None:
        first = False
        reports = [report for report in reports if not report["new"]]
        if self._is_new:
            self.votes.join(reports[0]["votes"])
            self._is_new = False
        if self.memory is not None:
            first = self.memory.settle([report["memory"] for report in reports])
        # Some have perhaps saved already, as a vote had asked for: they take that back, so the others leave it out.
        # The first time all ranks save together, and then all do it again.
        self.votes.settle([report["votes"] for report in reports], keep=first)

    def rejoin(self) -> None:
        for loss in self._push_sum.losses:
            for rank in set(loss.ranks) - set(loss.replaced):
                progress.is_lost(rank)
        if self.memory is not None:
            self.memory.remove_what_the_lost_left()
        self.votes.rejoin()

    def close(self) -> None:
        """Free what was made and is not used."""
        self.votes.close()
        if self.memory is not None:
            self.memory.close()
