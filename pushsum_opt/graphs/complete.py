"""Everybody to everybody."""

from __future__ import annotations

from .base import Graph

__all__ = ["Complete"]


class Complete(Graph):
    """In every round, every rank sends to every other: P = J = 1 1^T / n, the exact average in one round.

    What all-reduce computes, for n - 1 messages per rank; to compare with, and inside a host.

    >>> Complete().out_peers(1, 4, 0)
    (0, 2, 3)
    """

    promises_proven = True
    mixes_fast = True

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return (*range(rank), *range(rank + 1, size))

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self.out_peers(rank, size, round)

    def symmetry(self, size: int) -> tuple[int, ...]:
        return (size,)
