"""From a ``graph=`` argument to a checked graph."""

from __future__ import annotations

from typing import Any

from .base import Graph
from .convert import as_graph
from .default import default
from .speed import warn_if_slow

__all__ = ["resolve"]


def resolve(graph: Any, size: int, *, warn: bool = True) -> Graph:
    """Return the graph that an argument stands for, checked at this number of ranks.

    Args:
        graph: None for :func:`default`; a :class:`Graph`; a function ``(rank, size, round) -> out-peers``; a list of
            edges, or one per round; or a networkx graph.
        size: number of ranks.
        warn: whether to try how fast it mixes; one rank's warning is enough.

    Raises:
        GraphError: the argument is none of these, or the graph breaks a promise at this size.

    >>> resolve(None, 6), resolve(lambda rank, size, round: (rank + 1) % size, 3)
    (BaseK(1), from_function(<lambda>))
    """
    found = default(size) if graph is None else as_graph(graph)
    found.check(size)
    if warn:
        warn_if_slow(found, size, stacklevel=2)
    return found
