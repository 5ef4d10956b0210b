"""Graphs that are listed edge by edge."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import GraphError
from .base import Graph

__all__ = ["EdgeGraph", "from_edges", "from_networkx"]

Edge = Sequence[Any]
"""(source, target), or (source, target, share)."""


class EdgeGraph(Graph):
    """A graph from lists of edges; see :func:`from_edges`."""

    def __init__(self, rounds: Sequence[Iterable[Edge]], name: str) -> None:
        if not rounds:
            raise GraphError("from_edges(): expected a list of edges, or several, one per round")
        self._name = name
        self._rounds = [_table(edges, round) for round, edges in enumerate(rounds)]
        self._size = 1 + max((max(edge[:2]) for table in self._rounds for edge in table), default=0)
        self._gives: list[dict[int, dict[int, float | None]]] = []
        self._senders: list[dict[int, list[int]]] = []
        for round, table in enumerate(self._rounds):
            gives: dict[int, dict[int, float | None]] = {}
            senders: dict[int, list[int]] = {}
            for source, target, share in table:
                if target in gives.setdefault(source, {}):
                    raise GraphError(f"{name}: round {round}: the edge ({source}, {target}) is listed twice")
                gives[source][target] = share
                senders.setdefault(target, []).append(source)
            self._gives.append(gives)
            self._senders.append({target: sorted(sources) for target, sources in senders.items()})
            for source, targets in gives.items():
                if len({share is None for share in targets.values()}) > 1:
                    raise GraphError(
                        f"{name}: round {round}, rank {source}: some of its edges have a share and some have none "
                        f"({targets}): give a share to all of them or to none"
                    )

    def check_size(self, size: int) -> None:
        if size > 1 and self._size > size:
            named = f"its edges name rank {self._size - 1}"
            raise GraphError(f"{self!r} at {size} ranks: {named}: expected 0 to {size - 1}")

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else tuple(self._gives[round % len(self._gives)].get(rank, ()))

    def shares(self, rank: int, size: int, round: int) -> tuple[float, ...]:
        listed = self._gives[round % len(self._gives)].get(rank, {}) if size > 1 else {}
        shares = [share for share in listed.values() if share is not None]
        return tuple(shares) if shares else super().shares(rank, size, round)

    def in_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return () if size == 1 else tuple(self._senders[round % len(self._senders)].get(rank, ()))

    def period(self, size: int) -> int:
        return len(self._rounds)

    def __repr__(self) -> str:
        edges = sum(map(len, self._rounds))
        return f"{self._name}: {edges} edges" + (f" in {len(self._rounds)} rounds" if len(self._rounds) > 1 else "")


def from_edges(*rounds: Iterable[Edge]) -> EdgeGraph:
    """Make a graph from lists of directed edges, one list per round; the lists repeat.

    Args:
        rounds: each edge is (source, target), or (source, target, share) with the part of its mass that the source
            gives. A rank's edges of one round have all a share or none; without, 1 / (1 + out-degree) each.

    Raises:
        GraphError: an edge is not of this form, or listed twice.

    >>> from_edges([(0, 1), (1, 2), (2, 0)]).in_peers(0, 3, 0)
    (2,)
    >>> [from_edges([(0, 1, 0.25), (1, 0, 0.75)], [(0, 1), (1, 0)]).gives(0, 2, k) for k in range(3)]
    [((1, 0.25),), ((1, 0.5),), ((1, 0.25),)]
    """
    return EdgeGraph([list(edges) for edges in rounds], "from_edges")


def from_networkx(graph: Any, share: str | None = None) -> EdgeGraph:
    """Make a graph from a networkx ``Graph`` or ``DiGraph`` whose nodes are 0 to n - 1.

    An undirected edge becomes one in each direction. networkx itself is not imported.

    Args:
        graph: of networkx, or anything with ``nodes``, ``edges(data=True)`` and ``is_directed()``.
        share: name of the edge attribute that holds the part of its mass that the source gives; None for
            1 / (1 + out-degree) each.

    Raises:
        GraphError: nodes have other names, or an edge lacks the attribute.

    >>> import networkx
    >>> from_networkx(networkx.cycle_graph(5)).out_peers(0, 5, 0)
    (1, 4)
    """
    nodes = list(graph.nodes)
    if sorted(map(str, nodes)) != sorted(map(str, range(len(nodes)))) or not all(isinstance(n, int) for n in nodes):
        raise GraphError(
            f"from_networkx: the nodes are {nodes[:5]}{' ...' if len(nodes) > 5 else ''}: expected the ranks 0 to "
            f"{len(nodes) - 1}; networkx.convert_node_labels_to_integers(graph) renames them"
        )
    edges: list[Edge] = []
    for source, target, data in graph.edges(data=True):
        if share is not None and share not in data:
            raise GraphError(f"from_networkx: the edge ({source}, {target}) has no attribute {share!r}; it has {data}")
        given = () if share is None else (data[share],)
        edges.append((source, target, *given))
        if not graph.is_directed() and source != target:
            edges.append((target, source, *given))
    return EdgeGraph([edges], "from_networkx")


def _table(edges: Iterable[Edge], round: int) -> list[tuple[int, int, float | None]]:
    table: list[tuple[int, int, float | None]] = []
    for edge in edges:
        try:
            source, target = operator.index(edge[0]), operator.index(edge[1])
            share = None if len(edge) == 2 else float(edge[2])
            good = len(edge) in (2, 3) and source >= 0 and target >= 0
        except (TypeError, ValueError, IndexError, KeyError):
            good = False
        if not good:
            raise GraphError(
                f"from_edges: round {round}: {edge!r} is not an edge: expected (source, target) or (source, target, "
                "share), with ranks from 0 on"
            )
        table.append((source, target, share))
    return table
