"""Everybody to everybody."""

from __future__ import annotations

from .base import Graph

__all__ = ["Complete"]


class Complete(Graph):
    """Every rank sends to every other in every round: the exact average in one round, for n (n - 1) messages.

    What all-reduce computes, at a much higher price; to compare with.

    >>> Complete().out_peers(1, 4, 0)
    (0, 2, 3)
    """

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple(peer for peer in range(size) if peer != rank)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self.out_peers(rank, size, round)
