"""EquiDyn: one distance per round, drawn for all ranks together."""

from __future__ import annotations

from functools import lru_cache

from ..errors import GraphError
from .base import Graph
from .random_peer import rounds_to_connect
from .randomness import below, scramble

__all__ = ["EquiDyn"]


class EquiDyn(Graph):
    """In every round a distance s is drawn uniformly from 1 to n - 1, and rank i sends to i + s (mod n) [1]_.

    The one-peer directed graph OD-EquiDyn over the whole basis: P = (1 - eta) I + eta A^(s), where A^(s) has
    (n - 1) / n at the peer and 1 / n on the diagonal. Each peer gets the share eta (n - 1) / n. In expectation a round
    multiplies the mean square of the disagreement by 1 - 2 eta (1 - eta (n - 1) / n), which is (n - 1) / (2 n) for
    eta = 1/2: about a half whatever n is. Doubly stochastic; never exact.

    Args:
        seed: the same on every rank.
        eta: the part of the mass that takes part, in (0, 1).

    References:
        .. [1] Song, Li, Jin, Shi, Yan, Yin, Yuan (2022). Communication-Efficient Topologies for Decentralized Learning
           with O(1) Consensus Rate. NeurIPS, arXiv 2210.07881, "OD-EquiDyn".

    >>> [EquiDyn(seed=1).out_peers(0, 100, k) for k in range(3)], EquiDyn().shares(0, 100, 0)
    ([(37,), (91,), (74,)], (0.495,))
    """

    promises_proven = True

    def __init__(self, seed: int = 0, eta: float = 0.5) -> None:
        if not 0.0 < eta < 1.0:
            raise GraphError(f"EquiDyn(eta={eta!r}): expected a number between 0 and 1")
        self.seed = seed
        self.eta = eta

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else ((rank + _distance(self.seed, size, round)) % size,)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else ((rank - _distance(self.seed, size, round)) % size,)

    def shares(self, rank: int, size: int, round: int) -> tuple[float, ...]:
        return () if size == 1 else (self.eta * (size - 1) / size,)

    def period(self, size: int) -> int | None:
        return None

    def window(self, size: int) -> int:
        return rounds_to_connect(size)

    def symmetry(self, size: int) -> tuple[int, ...]:
        return (size,)

    def __repr__(self) -> str:
        return f"EquiDyn(seed={self.seed})" if self.eta == 0.5 else f"EquiDyn(seed={self.seed}, eta={self.eta})"


@lru_cache(maxsize=256)
def _distance(seed: int, size: int, round: int) -> int:
    return 1 + below(size - 1, scramble(seed), round)
