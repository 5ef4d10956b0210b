"""Each rank draws its peer by itself."""

from __future__ import annotations

from functools import lru_cache

from .base import Graph
from .randomness import below, distinct, scramble

__all__ = ["RandomPeer"]

OFFSETS = 16


class RandomPeer(Graph):
    """In every round, each rank draws one other rank by itself and sends to it [1]_.

    Several ranks may draw the same one and nobody may draw another: in-degrees are irregular and the mixing matrix is
    column-stochastic only, so w wanders. This is the graph on which push-sum was proposed, and the hardest test of
    whatever assumes w = 1. Never exact; the disagreement falls by a constant factor per round whatever n is.

    So that nobody has to ask n ranks whom they drew, m = min(16, n - 1) distances, drawn anew in every round from
    1 to n - 1, are common to all, and each rank draws one of *them* by itself. Up to 17 ranks that is the uniform draw
    itself; beyond, each rank's peer is still uniform over all others, and in-degrees are Binomial(16, 1/16) where
    independent draws have Poisson(1).

    Args:
        seed: the same on every rank.

    References:
        .. [1] Kempe, Dobra, Gehrke (2003). Gossip-Based Computation of Aggregate Information. FOCS, protocol Push-Sum.

    >>> [RandomPeer(seed=1).out_peers(0, 100, k) for k in range(3)]
    [(47,), (12,), (6,)]
    >>> [len(RandomPeer(seed=1).in_peers(rank, 100, 0)) for rank in range(12)]
    [0, 2, 1, 2, 0, 2, 1, 2, 0, 1, 0, 1]
    """

    promises_proven = True
    mixes_fast = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        if size == 1:
            return ()
        key, distances = _draw(self.seed, size, round)
        return ((rank + distances[below(len(distances), key, rank)]) % size,)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        if size == 1:
            return ()
        key, distances = _draw(self.seed, size, round)
        senders = []
        for index, distance in enumerate(distances):
            sender = (rank - distance) % size
            if below(len(distances), key, sender) == index:
                senders.append(sender)
        return tuple(sorted(senders))

    def period(self, size: int) -> int | None:
        return None

    def window(self, size: int) -> int:
        return rounds_to_connect(size)

    def __repr__(self) -> str:
        return f"RandomPeer(seed={self.seed})"


def rounds_to_connect(size: int) -> int:
    """Return rounds in which random graphs of about one peer connect all ranks, but for one seed in about 10^5."""
    return 16 + 4 * size.bit_length()


@lru_cache(maxsize=256)
def _draw(seed: int, size: int, round: int) -> tuple[int, tuple[int, ...]]:
    distances = distinct(min(OFFSETS, size - 1), size - 1, scramble(seed, round, 0))
    return scramble(seed, round, 1), tuple([1 + one for one in distances])
