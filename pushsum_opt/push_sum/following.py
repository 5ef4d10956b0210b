"""What goes on beside the rounds of a push-sum, and has to be taken up again by the survivors of a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

__all__ = ["Follower"]


class Follower(ABC):
    """Something that ranks do together over many rounds, such as votes or a count.

    It is registered with a member when a call of all ranks is committed: so after a loss every survivor has the same
    followers, in the same order. One that is over on this rank still reports: others may not know yet how it ended.
    """

    has_newcomers = False
    """Whether spares that are taken in have made one too. If not, they are taken in only when it has ended."""

    @abstractmethod
    def report(self) -> Any:
        """Return what the other survivors need of this rank: anything that JSON can hold. Local; may be repeated."""

    @abstractmethod
    def settle(self, reports: Sequence[Any]) -> None:
        """Take over what survivors have told each other. Local. The mass is settled already; nothing is open yet.

        Args:
            reports: of all survivors, by their new ranks.
        """

    @abstractmethod
    def rejoin(self) -> None:
        """Begin anew, on the new communicator, what was open. Its own collectives come in the order of the old ones.

        Where another rank dies in it, :meth:`report` is called next.
        """
