"""The mixing matrix of a round as arrays of edges, to multiply probe vectors with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .base import Graph

__all__ = ["SparseRound", "SparseRounds", "sparse_round"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Gather(NamedTuple):
    """Row ``rows[r]`` collects, from ``starts[r]`` on, ``shares`` of what is at ``sources``."""

    rows: Ints
    starts: Ints | None  # None: one each
    sources: Ints
    shares: Floats  # (edges, 1)

    @property
    def most(self) -> int:
        """The most edges of a row."""
        if self.starts is None:
            return min(1, len(self.rows))
        return int(np.diff(self.starts, append=len(self.sources)).max())

    def add_to(self, result: Floats, x: Floats) -> Floats:
        moved = x[self.sources]
        moved *= self.shares
        if self.starts is not None:
            moved = np.add.reduceat(moved, self.starts, axis=0)
        result[self.rows] += moved
        return result


class SparseRound(NamedTuple):
    """P(k) of n ranks: what each keeps, (n, 1), and what goes along each edge."""

    keep: Floats
    forward: Gather
    backward: Gather

    def apply(self, x: Floats) -> Floats:
        """Return P x, for x of shape (n, probes)."""
        return self.forward.add_to(self.keep * x, x)

    def apply_transposed(self, y: Floats) -> Floats:
        """Return P^T y."""
        return self.backward.add_to(self.keep * y, y)

    @property
    def edges(self) -> int:
        return len(self.forward.sources)


def sparse_round(graph: Graph, size: int, round: int) -> SparseRound:
    """Ask every rank for its peers and shares of a round.

    >>> from pushsum_opt.graphs import Ring
    >>> sparse_round(Ring(), 3, 0).apply(np.eye(3))
    array([[0.5, 0. , 0.5],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])
    """
    sources: list[int] = []
    targets: list[int] = []
    shares: list[float] = []
    for rank in range(size):
        for peer, share in graph.gives(rank, size, round):
            sources.append(rank)
            targets.append(peer)
            shares.append(share)
    source, target = np.array(sources, np.int64), np.array(targets, np.int64)
    share_of = np.array(shares, np.float64)
    keep: Floats = np.ones(size) - np.bincount(source, share_of, minlength=size)
    return SparseRound(keep[:, None], _gather(target, source, share_of), _gather(source, target, share_of))


def _gather(rows: Ints, sources: Ints, shares: Floats) -> Gather:
    order = np.argsort(rows, kind="stable")
    unique, starts = np.unique(rows[order], return_index=True)
    one_each = len(unique) == len(rows)
    return Gather(unique, None if one_each else starts.astype(np.int64), sources[order], shares[order][:, None])


class SparseRounds:
    """The rounds of a graph from 0 on; those of a period are asked for once."""

    def __init__(self, graph: Graph, size: int) -> None:
        self.period = graph.period(size)
        self._graph = graph
        self._size = size
        self._known: dict[int, SparseRound] = {}

    def __getitem__(self, round: int) -> SparseRound:
        key = round if self.period is None else round % self.period
        if key not in self._known:
            self._known[key] = sparse_round(self._graph, self._size, key)
        return self._known[key]

    def __iter__(self) -> Iterator[SparseRound]:
        return map(self.__getitem__, count())
