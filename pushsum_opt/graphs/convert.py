"""What a ``graph=`` argument may be."""

from __future__ import annotations

from typing import Any

from ..errors import GraphError
from .base import Graph
from .edges import from_edges, from_networkx
from .function import from_function

__all__ = ["as_graph"]


def as_graph(graph: Any) -> Graph:
    """Return the graph that a value stands for: a Graph, a function, edges, or a graph of networkx.

    Raises:
        GraphError: it is none of these.

    >>> as_graph([(0, 1), (1, 0)])
    from_edges: 2 edges
    """
    if isinstance(graph, Graph):
        return graph
    if isinstance(graph, type):
        raise GraphError(f"graph={graph.__name__} is a class: expected an instance, such as {graph.__name__}()")
    if all(hasattr(graph, name) for name in ("nodes", "edges", "is_directed")):
        return from_networkx(graph)
    if callable(graph):
        return from_function(graph)
    if isinstance(graph, (list, tuple)) and graph and all(isinstance(item, (list, tuple)) for item in graph):
        per_round = all(isinstance(edge, (list, tuple)) for item in graph for edge in item)
        return from_edges(*graph) if per_round else from_edges(graph)
    raise GraphError(
        f"graph={graph!r}: expected a Graph such as graphs.OnePeerExponential(), a function (rank, size, round) -> "
        "out-peers, a list of edges (source, target), a networkx graph, or None for the default"
    )
