"""The ranks of a job that are still there: who has died, and how the others agree on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

__all__ = ["Crew", "Wait"]

Wait = Callable[[Callable[[], list[int]]], None]
"""Calls a function, which returns the ranks that are still awaited, until it returns none."""


class Crew(ABC):
    """All ranks of a job that are known to be alive, as one of them sees it.

    Args:
        comm: their communicator.
        ranks: their numbers when the job was started.
    """

    def __init__(self, comm: Any, ranks: tuple[int, ...]) -> None:
        self.comm = comm
        self.ranks = ranks

    @abstractmethod
    def revoke(self) -> None:
        """Make what all ranks wait for, on anything that this one has open, fail with RanksLost: some rank has died."""

    @abstractmethod
    def survivors(self, wait: Wait) -> Crew:
        """Wait until every member has come here or has died, and return those that are alive, the same on each."""

    @abstractmethod
    def agree(self, flag: bool) -> bool:
        """Return, the same on every member that lives, whether all passed True and none has died since."""
