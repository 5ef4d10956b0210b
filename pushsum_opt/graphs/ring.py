"""Rings."""

from __future__ import annotations

from ..errors import GraphError
from .base import Graph

__all__ = ["Ring"]


class Ring(Graph):
    """In every round, rank i sends to rank i + 1 (mod n), or to both neighbours.

    The cheapest connected graph, and the slowest to mix: the second singular value is cos(pi / n) one way and
    (1 + 2 cos(2 pi / n)) / 3 both ways [1]_, so rounds grow with n^2. For tests, and for networks that are rings.

    Args:
        peers: 1: to the next rank; 2: to the next and the previous one.

    References:
        .. [1] Xiao, Boyd (2004). Fast Linear Iterations for Distributed Averaging. Systems & Control Letters 53.

    >>> Ring().out_peers(2, 3, 0)
    (0,)
    >>> Ring(peers=2).out_peers(0, 5, 0)
    (1, 4)
    """

    promises_proven = True

    def __init__(self, peers: int = 1) -> None:
        if peers not in (1, 2):
            raise GraphError(f"Ring(peers={peers!r}): expected 1 (to the next rank) or 2 (to both neighbours)")
        self.peers = peers

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        if size == 1:
            return ()
        following = (rank + 1) % size
        return (following,) if self.peers == 1 or size == 2 else (following, (rank - 1) % size)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        if size == 1:
            return ()
        previous = (rank - 1) % size
        return (previous,) if self.peers == 1 or size == 2 else tuple(sorted((previous, (rank + 1) % size)))

    def symmetry(self, size: int) -> tuple[int, ...]:
        return (size,)

    def __repr__(self) -> str:
        return "Ring()" if self.peers == 1 else f"Ring(peers={self.peers})"
