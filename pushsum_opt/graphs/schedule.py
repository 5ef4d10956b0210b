"""One graph after another."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from ..errors import GraphError
from .base import Graph
from .convert import as_graph

__all__ = ["Schedule"]


class Schedule(Graph):
    """One graph until a round, then the next: such as two peers at first, when the models differ most, later one [1]_.

    All ranks change in the same round, as each knows it from the round's number; shares and peers come from the same
    graph always. Each graph counts its rounds from the moment it takes over.

    Args:
        phases: pairs (until_round, graph): the graph is used in the rounds before ``until_round``. Ascending; the last
            one is None, for ever.

    References:
        .. [1] Assran, Loizou, Ballas, Rabbat (2019). Stochastic Gradient Push for Distributed Deep Learning. ICML,
           arXiv 1811.10792, "2P/1P-SGP".

    >>> from pushsum_opt.graphs import KPeerExponential, OnePeerExponential
    >>> graph = Schedule([(1000, KPeerExponential(2)), (None, OnePeerExponential())])
    >>> graph.out_peers(0, 8, 999), graph.out_peers(0, 8, 1000)
    ((1, 2), (1,))
    """

    def __init__(self, phases: Sequence[tuple[int | None, Any]]) -> None:
        phases = [_pair(phase) for phase in phases]
        if not phases:
            raise GraphError("Schedule([]): expected pairs (until_round, graph), the last one with None")
        *ends, last = [until for until, _ in phases]
        whole = [end for end in ends if isinstance(end, int) and not isinstance(end, bool)]
        if last is not None or whole != ends or any(a >= b for a, b in zip([0, *whole], whole, strict=False)):
            raise GraphError(
                f"Schedule: the rounds are {[until for until, _ in phases]}: expected whole numbers, ascending from 1 "
                "on, and None for the last graph, which stays"
            )
        self.ends = whole
        self.graphs = [as_graph(graph) for _, graph in phases]

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        graph, own = self.at(round)
        return graph.out_peers(rank, size, own)

    def shares(self, rank: int, size: int, round: int) -> tuple[float, ...]:
        graph, own = self.at(round)
        return graph.shares(rank, size, own)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        graph, own = self.at(round)
        return graph.in_peers(rank, size, own)

    def at(self, round: int) -> tuple[Graph, int]:
        """Return the graph of a round, and which of its own rounds that is."""
        phase = bisect_right(self.ends, round)
        return self.graphs[phase], round - (self.ends[phase - 1] if phase else 0)

    def period(self, size: int) -> int | None:
        return None if self.ends else self.graphs[0].period(size)

    def window(self, size: int) -> int:
        """Return the longest of the graphs' windows: any of them is connected within it, once it has taken over."""
        return max(graph.window(size) for graph in self.graphs)

    def partners(self, rank: int, size: int) -> frozenset[int]:
        return frozenset().union(*(graph.partners(rank, size) for graph in self.graphs))

    def parts(self, size: int) -> list[tuple[Graph, int]]:
        return [(graph, size) for graph in self.graphs]

    def fingerprint(self, size: int) -> str:
        parts = [str(self.ends), *(graph.fingerprint(size) for graph in self.graphs)]
        return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()

    def __repr__(self) -> str:
        pairs = zip([*self.ends, None], self.graphs, strict=True)
        return f"Schedule([{', '.join(f'({end}, {graph!r})' for end, graph in pairs)}])"


def _pair(phase: Any) -> tuple[Any, Any]:
    try:
        until, graph = phase
    except (TypeError, ValueError):
        raise GraphError(f"Schedule: {phase!r} is not a pair (until_round, graph)") from None
    return until, graph
