"""Inside hosts and between them."""

from __future__ import annotations

import math
from typing import Any

from ..errors import GraphError
from .base import Graph
from .complete import Complete
from .convert import as_graph
from .default import default

__all__ = ["Hierarchical"]


class Hierarchical(Graph):
    """Even rounds inside each host, odd rounds between hosts.

    Ranks are placed on hosts in order: rank i is lane i mod g of host i // g, with g = ``local_size``. In round 2 m the
    lanes of a host run round m of ``inner``, over the fast links that they share; in round 2 m + 1 the ranks of each
    lane run round m of ``outer`` over the hosts. Where both average exactly in finitely many rounds, so does this.

    Args:
        local_size: g, ranks per host; must divide the number of ranks.
        outer: the graph over hosts; None for the default at their number.
        inner: the graph over the lanes of a host; None for :class:`Complete`, their exact average in one round.

    >>> graph = Hierarchical(4)
    >>> [graph.out_peers(5, 16, k) for k in range(4)]
    [(4, 6, 7), (9,), (4, 6, 7), (13,)]
    """

    def __init__(self, local_size: int, outer: Any = None, inner: Any = None) -> None:
        if isinstance(local_size, bool) or not isinstance(local_size, int) or local_size < 1:
            raise GraphError(f"Hierarchical({local_size!r}): expected the number of ranks per host, at least 1")
        self.local_size = local_size
        self._outer = None if outer is None else as_graph(outer)
        self._inner = Complete() if inner is None else as_graph(inner)

    def check_size(self, size: int) -> None:
        if size % self.local_size:
            lower = size - size % self.local_size
            near = f"{lower} and {lower + self.local_size}" if lower else str(self.local_size)
            raise GraphError(
                f"{self!r} at {size} ranks: it is defined at multiples of {self.local_size}, such as {near}"
            )

    def parts(self, size: int) -> tuple[tuple[Graph, int], tuple[Graph, int]]:
        """Return (inner graph, lanes), (outer graph, hosts)."""
        self.check_size(size)
        hosts = size // self.local_size
        return (self._inner, self.local_size), (self._outer or default(hosts), hosts)

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        graph, level, own, first, stride = self._at(rank, size, round)
        peers = graph.out_peers(own, level, round // 2) if level > 1 else ()
        return tuple([first + stride * peer for peer in peers])

    def shares(self, rank: int, size: int, round: int) -> tuple[float, ...]:
        graph, level, own, _, _ = self._at(rank, size, round)
        return graph.shares(own, level, round // 2) if level > 1 else ()

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        graph, level, own, first, stride = self._at(rank, size, round)
        return tuple([first + stride * peer for peer in graph.in_peers(own, level, round // 2)])

    def _at(self, rank: int, size: int, round: int) -> tuple[Graph, int, int, int, int]:
        """Return the graph of a round, its size, the rank's number in it, its number 0 here, and their distance."""
        (inner, lanes), (outer, hosts) = self.parts(size)
        host, lane = divmod(rank, lanes)
        if round % 2:
            return outer, hosts, host, lane, lanes
        return inner, lanes, lane, host * lanes, 1

    def period(self, size: int) -> int | None:
        periods = [graph.period(level) for graph, level in self.parts(size)]
        return None if None in periods else 2 * math.lcm(*(period for period in periods if period is not None))

    def window(self, size: int) -> int:
        windows = [graph.window(level) for graph, level in self.parts(size)]
        return self.period(size) or 2 * max(windows)

    def symmetry(self, size: int) -> tuple[int, ...] | None:
        inner, outer = [graph.symmetry(level) for graph, level in self.parts(size)]
        return None if inner is None or outer is None else (*outer, *inner)

    def __repr__(self) -> str:
        outer = "" if self._outer is None else f", outer={self._outer!r}"
        inner = "" if isinstance(self._inner, Complete) else f", inner={self._inner!r}"
        return f"Hierarchical({self.local_size}{outer}{inner})"
