"""The exponential graph in pairs."""

from __future__ import annotations

from ..errors import GraphError
from .base import Graph

__all__ = ["BipartiteExponential"]


class BipartiteExponential(Graph):
    """In round k, even rank i and odd rank i + 2^(j + 1) - 1 (mod n) exchange halves, j = k mod L [1]_.

    L = floor(log2(n / 2)) + 1 distances 1, 3, 7, 15, ... below n, all odd, so that the even ranks are paired with the
    odd ones. Defined at even n. Pairwise and symmetric: the form that D-PSGD and AD-PSGD ask for, which cannot use
    directed graphs; being bipartite, it lets blocking pairs take turns without a deadlock [1]_. Where n is a power of
    two, log2 n rounds average exactly; elsewhere it mixes a little faster than :class:`OnePeerExponential`.

    References:
        .. [1] Lian, Zhang, Zhang, Liu (2018). Asynchronous Decentralized Parallel Stochastic Gradient Descent. ICML,
           arXiv 1710.06952.

    >>> [BipartiteExponential().out_peers(0, 8, k) for k in range(3)]
    [(1,), (3,), (7,)]
    >>> [BipartiteExponential().out_peers(3, 8, k) for k in range(3)]
    [(2,), (0,), (4,)]
    """

    promises_proven = True
    mixes_fast = True

    def check_size(self, size: int) -> None:
        if size > 1 and size % 2:
            raise GraphError(
                f"{self!r} at {size} ranks: it is defined at even sizes, such as {size - 1} and {size + 1}; BaseK(1) "
                "is in pairs too and averages exactly at every size"
            )

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        if size % 2:
            self.check_size(size)
            return ()
        distance = (2 << round % self.period(size)) - 1
        return ((rank - distance if rank % 2 else rank + distance) % size,)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self.out_peers(rank, size, round)

    def period(self, size: int) -> int:
        return max(1, (size // 2).bit_length())
