"""Exponential graphs: offsets that are powers of two."""

from __future__ import annotations

from .base import Graph

__all__ = ["OnePeerExponential"]


class OnePeerExponential(Graph):
    """In round k, rank i sends to rank i + 2^(k mod L) (mod n), with L = floor(log2(n - 1)) + 1.

    One message per rank and round. Where n is a power of two, L = log2 n rounds average exactly; elsewhere they come
    close. Every rank has one in-peer, so the mixing matrix is doubly stochastic and w stays where it began.

    References:
        Assran, Loizou, Ballas, Rabbat (2019). Stochastic Gradient Push for Distributed Deep Learning, section 5.
        Ying, Yuan, Chen, Hu, Pan, Yin (2021). Exponential Graph is Provably Efficient for Decentralized Deep Training.

    >>> [OnePeerExponential().out_peers(0, 8, k) for k in range(4)]
    [(1,), (2,), (4,), (1,)]
    """

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else ((rank + self._offset(size, round)) % size,)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else ((rank - self._offset(size, round)) % size,)

    def period(self, size: int) -> int:
        # (n - 1).bit_length() is floor(log2(n - 1)) + 1, without rounding.
        return max(1, (size - 1).bit_length())

    def _offset(self, size: int, round: int) -> int:
        return 1 << (round % self.period(size))
