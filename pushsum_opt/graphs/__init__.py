"""Who sends to whom: one family per file, pure functions of (rank, size, round)."""

from __future__ import annotations

from typing import Any

from ..errors import GraphError
from .base import Graph
from .complete import Complete
from .exponential import OnePeerExponential
from .function import from_function
from .ring import Ring

__all__ = ["Complete", "Graph", "OnePeerExponential", "Ring", "from_function", "resolve"]


def resolve(graph: Any, size: int) -> Graph:
    """Return the graph that an argument stands for, checked.

    Args:
        graph: None for the default of this size, a :class:`Graph`, or a function ``(rank, size, round) -> out-peers``.
        size: number of ranks.

    Raises:
        GraphError: the argument is none of these, or the graph breaks a promise at this size.
    """
    if graph is None:
        graph = OnePeerExponential()
    elif isinstance(graph, type) and issubclass(graph, Graph):
        raise GraphError(f"graph={graph.__name__} is a class: expected an instance, {graph.__name__}()")
    elif not isinstance(graph, Graph):
        if not callable(graph):
            raise GraphError(
                f"graph={graph!r}: expected a Graph, a function (rank, size, round) -> out-peers, or None"
            )
        graph = from_function(graph)
    graph.check(size)
    resolved: Graph = graph
    return resolved
