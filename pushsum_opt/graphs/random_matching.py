"""Random pairs."""

from __future__ import annotations

import math
from functools import lru_cache

from .base import Graph
from .random_peer import rounds_to_connect
from .randomness import scramble, stir

__all__ = ["RandomMatching"]

SMALL_SIZE = 64
"""Up to so many ranks, the network that permutes them needs more steps to be fair."""
NETWORK_STEPS = (20, 8)
"""Steps of the network: up to SMALL_SIZE ranks, and beyond."""


class RandomMatching(Graph):
    """In every round the ranks are paired at random, and the two of a pair exchange halves [1]_.

    Where n is odd, one rank rests. Doubly stochastic and symmetric; never exact; the mean square of the disagreement
    halves per round, whatever n is.

    The pairs are ranks 2 j and 2 j + 1 of a pseudo-random order of all ranks: a Feistel network over a grid of about
    sqrt(n) x sqrt(n) [2]_, which a rank can follow forwards and backwards for itself alone, without listing the order.

    Args:
        seed: the same on every rank.

    References:
        .. [1] Boyd, Ghosh, Prabhakar, Shah (2006). Randomized Gossip Algorithms. IEEE Transactions on Information
           Theory 52(6).
        .. [2] Black, Rogaway (2002). Ciphers with Arbitrary Finite Domains. CT-RSA, the generalized-Feistel cipher.

    >>> [RandomMatching(seed=1).out_peers(rank, 6, 0) for rank in range(6)]
    [(5,), (2,), (1,), (4,), (3,), (0,)]
    """

    promises_proven = True
    mixes_fast = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        keys = _keys(self.seed, round, NETWORK_STEPS[size > SMALL_SIZE])
        place = _permute(rank, size, keys)
        other = place ^ 1
        return (_restore(other, size, keys),) if other < size else ()

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self.out_peers(rank, size, round)

    def period(self, size: int) -> int | None:
        return None

    def window(self, size: int) -> int:
        return rounds_to_connect(size)

    def __repr__(self) -> str:
        return f"RandomMatching(seed={self.seed})"


@lru_cache(maxsize=256)
def _keys(seed: int, round: int, steps: int) -> tuple[int, ...]:
    return tuple(scramble(seed, round, step) for step in range(steps))


def _grid(size: int) -> tuple[int, int]:
    rows = math.isqrt(size - 1) + 1
    return rows, -(-size // rows)


def _permute(rank: int, size: int, keys: tuple[int, ...]) -> int:
    """Walk along the permutation of the grid, which has a few places more than ranks, until a rank comes."""
    rows, columns = _grid(size)
    while True:
        row, column = divmod(rank, columns)
        for step, key in enumerate(keys):
            if step % 2:
                column = (column + stir(key, row)) % columns
            else:
                row = (row + stir(key, column)) % rows
        rank = row * columns + column
        if rank < size:
            return rank


def _restore(place: int, size: int, keys: tuple[int, ...]) -> int:
    rows, columns = _grid(size)
    while True:
        row, column = divmod(place, columns)
        for step in range(len(keys) - 1, -1, -1):
            if step % 2:
                column = (column - stir(keys[step], row)) % columns
            else:
                row = (row - stir(keys[step], column)) % rows
        place = row * columns + column
        if place < size:
            return place
