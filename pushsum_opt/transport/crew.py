"""The ranks of a job that are still there: who has died, and how the others agree on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

__all__ = ["CallsAreOver", "Crew", "Wait"]

Wait = Callable[[Callable[[], list[int]]], None]
"""Calls a function, which returns the ranks that are still awaited, until it returns none."""


class CallsAreOver(Exception):
    """Another rank has nothing open any more, so there is nothing to recover.

    Args:
        committed: how many calls of all ranks were committed: at least one more than this rank knew.
    """

    def __init__(self, committed: int) -> None:
        super().__init__(committed)
        self.committed = committed


class Crew(ABC):
    """All ranks of a job that are known to be alive, as one of them sees it.

    Args:
        comm: their communicator.
        ranks: their numbers when the job was started.
    """

    def __init__(self, comm: Any, ranks: tuple[int, ...]) -> None:
        self.comm = comm
        self.ranks = ranks
        self.bench: Any = None
        """The spares of the job, as those that train see them; None: it has none."""
        self.waits = False
        """Whether this is a spare that the others have not taken in."""

    @property
    def processes(self) -> tuple[int, ...]:
        """The members by their numbers among all processes of the job, spares included."""
        return self.ranks

    def grown(self, processes: Sequence[int], ranks: tuple[int, ...], name: str) -> Crew:
        """Collective over some processes, all of which are here. Return them as a crew.

        Args:
            name: of its communicator, not used before.
        """
        raise NotImplementedError(f"{type(self).__name__} takes in nobody")

    @abstractmethod
    def revoke(self) -> None:
        """Make what all ranks wait for, on anything that this one has open, fail with RanksLost: some rank has died."""

    @abstractmethod
    def survivors(self, wait: Wait, committed: int) -> Crew:
        """Wait until every member has come here or has died, and return those that are alive, the same on each.

        Args:
            committed: how many calls of all ranks were committed, as far as this rank knows.

        Raises:
            CallsAreOver: a member has said that more were, and may not come.
        """

    @abstractmethod
    def say_over(self, committed: int) -> None:
        """Tell the others that this rank has nothing open any more. Local, and waits for nobody.

        A rank that dies now may leave others in doubt whether the last call was committed: it was.
        """

    @abstractmethod
    def leave(self, why: str) -> NoReturn:
        """End this rank well, after a line that says why; to the others it has died."""

    @abstractmethod
    def agree(self, flag: bool) -> bool:
        """Return, the same on every member that lives, whether all passed True and none has died since."""
