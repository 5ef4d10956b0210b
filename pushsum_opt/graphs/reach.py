"""How fast news travels over a graph."""

from __future__ import annotations

from .base import Graph

__all__ = ["rounds_to_reach_all"]

STARTS = 8
"""Rounds that are tried as the first one, evenly over a window of the graph."""


def rounds_to_reach_all(graph: Graph, size: int) -> int:
    """Return after how many rounds, from any round on, every rank has heard from all others, if only through others.

    >>> from pushsum_opt.graphs import OnePeerExponential, Ring
    >>> rounds_to_reach_all(OnePeerExponential(), 8), rounds_to_reach_all(Ring(), 5), rounds_to_reach_all(Ring(), 1)
    (3, 4, 0)
    """
    if size == 1:
        return 0
    window = graph.window(size)
    starts = range(0, window, -(-window // STARTS))
    return max(_rounds_from(graph, size, start, size * window) for start in starts)


def _rounds_from(graph: Graph, size: int, start: int, most: int) -> int:
    everyone = (1 << size) - 1
    heard = [1 << rank for rank in range(size)]
    for rounds in range(most):
        if all(ranks == everyone for ranks in heard):
            return rounds
        before = list(heard)
        for rank in range(size):
            for peer in graph.out_peers(rank, size, start + rounds):
                heard[peer] |= before[rank]
    return most
