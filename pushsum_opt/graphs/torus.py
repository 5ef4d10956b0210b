"""The two-dimensional torus."""

from __future__ import annotations

import math

from ..errors import GraphError
from .base import Graph

__all__ = ["Torus"]


class Torus(Graph):
    """In every round, a rank on a grid of rows x columns that wraps around sends to its four neighbours [1]_.

    Rank i sits in row i // columns, column i mod columns. Sides of length 2 have one neighbour in that direction, of
    length 1 none: a prime number of ranks makes a ring both ways. Rounds grow with the square of the longer side.

    Args:
        rows: must divide the number of ranks; None for the grid that is nearest to a square.

    References:
        .. [1] Lian, Zhang, Zhang, Hsieh, Zhang, Liu (2017). Can Decentralized Algorithms Outperform Centralized
           Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent. NeurIPS, arXiv 1705.09056.

    >>> sorted(Torus().out_peers(0, 12, 0)), Torus().shape(12)
    ([1, 3, 4, 8], (3, 4))
    """

    promises_proven = True

    def __init__(self, rows: int | None = None) -> None:
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
            raise GraphError(f"Torus(rows={rows!r}): expected a whole number of rows, at least 1, or None")
        self.rows = rows

    def check_size(self, size: int) -> None:
        if self.rows is not None and size % self.rows:
            raise GraphError(
                f"{self!r} at {size} ranks: it is defined at multiples of {self.rows}; Torus() picks the rows itself"
            )

    def shape(self, size: int) -> tuple[int, int]:
        """Return (rows, columns)."""
        self.check_size(size)
        rows = self.rows
        if rows is None:
            rows = next(rows for rows in range(math.isqrt(size), 0, -1) if size % rows == 0)
        return rows, size // rows

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        rows, columns = self.shape(size)
        row, column = divmod(rank, columns)
        peers = {
            row * columns + (column + 1) % columns: None,
            row * columns + (column - 1) % columns: None,
            (row + 1) % rows * columns + column: None,
            (row - 1) % rows * columns + column: None,
        }
        peers.pop(rank, None)
        return tuple(peers)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple(sorted(self.out_peers(rank, size, round)))

    def symmetry(self, size: int) -> tuple[int, ...]:
        return self.shape(size)

    def __repr__(self) -> str:
        return "Torus()" if self.rows is None else f"Torus(rows={self.rows})"
