"""Exponential graphs: peers at distances that are powers of two."""

from __future__ import annotations

import math

from ..errors import GraphError
from .base import Graph

__all__ = ["KPeerExponential", "OnePeerExponential", "StaticExponential"]


def exponents(size: int) -> int:
    """Return L = floor(log2(n - 1)) + 1, the number of powers of two below n; at least 1."""
    return max(1, (size - 1).bit_length())  # exact, unlike a logarithm


class OnePeerExponential(Graph):
    """In round k, rank i sends to rank i + 2^(k mod L) (mod n), with L = floor(log2(n - 1)) + 1 [1]_ [2]_.

    One message per rank and round, the fewest there are. Where n is a power of two, L = log2 n rounds average exactly
    [2]_; elsewhere they leave at most a quarter of the disagreement, and it fades from cycle to cycle. Every rank has
    one in-peer, so the mixing matrix is doubly stochastic and w stays where it began. The default at powers of two.

    References:
        .. [1] Assran, Loizou, Ballas, Rabbat (2019). Stochastic Gradient Push for Distributed Deep Learning. ICML,
           arXiv 1811.10792, appendix A.
        .. [2] Ying, Yuan, Chen, Hu, Pan, Yin (2021). Exponential Graph is Provably Efficient for Decentralized Deep
           Training. NeurIPS, arXiv 2110.13363, "one-peer exponential graph".

    >>> [OnePeerExponential().out_peers(0, 8, k) for k in range(4)]
    [(1,), (2,), (4,), (1,)]
    >>> OnePeerExponential().in_peers(0, 6, 2)
    (2,)
    """

    promises_proven = True
    mixes_fast = True

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else ((rank + (1 << round % exponents(size))) % size,)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else ((rank - (1 << round % exponents(size))) % size,)

    def period(self, size: int) -> int:
        return exponents(size)

    def symmetry(self, size: int) -> tuple[int, ...]:
        return (size,)


class KPeerExponential(Graph):
    """In round k, rank i sends to the next K of the L distances 1, 2, 4, ..., 2^(L - 1), going round [1]_.

    That is to ranks i + 2^((K k + j) mod L) (mod n) for j = 0 to K - 1, with L = floor(log2(n - 1)) + 1. K = 1 is
    :class:`OnePeerExponential`, K >= L :class:`StaticExponential`. With K = 2 the "2P-SGP" of the paper. For K peers
    that average exactly, see :class:`BaseK`.

    Args:
        k: K >= 1, messages per rank and round; where L is smaller, L of them.

    References:
        .. [1] Assran, Loizou, Ballas, Rabbat (2019). Stochastic Gradient Push for Distributed Deep Learning. ICML,
           arXiv 1811.10792, "2P-SGP".

    >>> [KPeerExponential(2).out_peers(0, 16, k) for k in range(3)]
    [(1, 2), (4, 8), (1, 2)]
    >>> [KPeerExponential(2).out_peers(0, 8, k) for k in range(3)]
    [(1, 2), (4, 1), (2, 4)]
    """

    promises_proven = True
    mixes_fast = True

    def __init__(self, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise GraphError(f"KPeerExponential({k!r}): expected a whole number of peers, at least 1")
        self.k = k

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else tuple([(rank + step) % size for step in self._steps(size, round)])

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else tuple(sorted([(rank - step) % size for step in self._steps(size, round)]))

    def period(self, size: int) -> int:
        distances = exponents(size)
        return 1 if self.k >= distances else distances // math.gcd(distances, self.k)

    def symmetry(self, size: int) -> tuple[int, ...]:
        return (size,)

    def _steps(self, size: int, round: int) -> list[int]:
        distances = exponents(size)
        if self.k >= distances:
            return [1 << j for j in range(distances)]
        return [1 << (self.k * round + j) % distances for j in range(self.k)]

    def __repr__(self) -> str:
        return f"KPeerExponential({self.k})"


class StaticExponential(Graph):
    """In every round, rank i sends to ranks i + 1, i + 2, i + 4, ..., i + 2^(L - 1) (mod n) [1]_.

    L = floor(log2(n - 1)) + 1 messages per rank and round; the second singular value is 1 - 2 / (1 + ceil(log2 n)) at
    even n and at most that at odd n [1]_. Never exact: the one-peer cycle over the same distances is cheaper and mixes
    better. To compare with.

    References:
        .. [1] Ying, Yuan, Chen, Hu, Pan, Yin (2021). Exponential Graph is Provably Efficient for Decentralized Deep
           Training. NeurIPS, arXiv 2110.13363, "static exponential graph".

    >>> StaticExponential().out_peers(0, 16, 7)
    (1, 2, 4, 8)
    """

    promises_proven = True
    mixes_fast = True

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else tuple([(rank + (1 << j)) % size for j in range(exponents(size))])

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else tuple(sorted([(rank - (1 << j)) % size for j in range(exponents(size))]))

    def symmetry(self, size: int) -> tuple[int, ...]:
        return (size,)
