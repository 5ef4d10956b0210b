"""What every way of gossiping offers to the push-sum above it."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["Gossip"]


class Gossip(ABC):
    """Decides which messages a round merges: the only difference between the modes."""

    staleness: int | str

    @abstractmethod
    def round(self, round: int, push_weight: float) -> float:
        """Give, and merge what is due.

        Args:
            round: k, counted from 0, the same on every rank.
            push_weight: w before the round.

        Returns:
            w after it.
        """

    @abstractmethod
    def drain(self, round: int, push_weight: float) -> float:
        """Wait for and merge all that is in flight. Collective.

        Returns:
            w afterwards.
        """

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Messages that this rank has received or awaits, and not yet merged."""
