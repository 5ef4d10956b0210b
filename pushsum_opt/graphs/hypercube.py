"""The hypercube, one dimension per round."""

from __future__ import annotations

from ..errors import GraphError
from .base import Graph
from .exponential import exponents

__all__ = ["Hypercube"]


class Hypercube(Graph):
    """In round k, rank i and the rank whose number differs in bit k mod log2 n exchange halves [1]_.

    Defined where n is a power of two. One message per rank and round, log2 n rounds average exactly, like
    :class:`OnePeerExponential`; unlike it pairwise, so each rank hears from the one that it sends to.

    References:
        .. [1] Shi, Li, Johansson, Johansson (2016). Finite-Time Convergent Gossiping. IEEE/ACM Transactions on
           Networking 24(5).

    >>> [Hypercube().out_peers(5, 8, k) for k in range(3)]
    [(4,), (7,), (1,)]
    """

    promises_proven = True
    mixes_fast = True

    def check_size(self, size: int) -> None:
        if size & (size - 1):
            below = 1 << size.bit_length() - 1
            raise GraphError(
                f"{self!r} at {size} ranks: it is defined at powers of two, such as {below} and {2 * below}; BaseK(1) "
                "averages exactly at every size"
            )

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        if size & (size - 1):
            self.check_size(size)
        return () if size == 1 else (rank ^ 1 << round % exponents(size),)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return self.out_peers(rank, size, round)

    def period(self, size: int) -> int:
        return exponents(size)

    def symmetry(self, size: int) -> tuple[int, ...]:
        return (2,) * (size.bit_length() - 1)
