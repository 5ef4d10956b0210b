"""Everything through one rank."""

from __future__ import annotations

from ..errors import GraphError
from .base import Graph

__all__ = ["Star"]


class Star(Graph):
    """In every round, one rank sends to all others and all others send to it.

    A parameter server as a graph. Each round removes half of the disagreement, whatever n is, and costs the centre n -
    1 messages each way. Column-stochastic only: the centre's push weight rises to n^2 / (3 n - 2), about n / 3, and
    everybody else's falls to 2 n / (3 n - 2), about 2 / 3.

    Args:
        centre: the rank in the middle.

    >>> Star().out_peers(0, 4, 0), Star().out_peers(3, 4, 0)
    ((1, 2, 3), (0,))
    """

    promises_proven = True
    mixes_fast = True

    def __init__(self, centre: int = 0) -> None:
        self.centre = centre

    def check_size(self, size: int) -> None:
        if not 0 <= self.centre < size:
            raise GraphError(f"{self!r} at {size} ranks: the centre must be a rank from 0 to {size - 1}")

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        if rank != self.centre:
            return (self.centre,)
        return (*range(rank), *range(rank + 1, size))

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self.out_peers(rank, size, round)

    def __repr__(self) -> str:
        return f"Star(centre={self.centre})" if self.centre else "Star()"
