"""Rings."""

from __future__ import annotations

from .base import Graph

__all__ = ["Ring"]


class Ring(Graph):
    """Rank i sends to rank i + 1 (mod n), in every round.

    The cheapest connected graph, and the slowest to mix: rounds grow with n^2. For tests, and for machines whose
    network is a ring.

    >>> Ring().out_peers(2, 3, 0)
    (0,)
    """

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else ((rank + 1) % size,)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else ((rank - 1) % size,)
