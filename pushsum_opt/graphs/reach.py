"""How fast news travels over a graph."""

from __future__ import annotations

from .base import Graph

__all__ = ["rounds_to_reach_all"]


def rounds_to_reach_all(graph: Graph, size: int) -> int:
    """Return after how many rounds, from any round on, every rank has heard from all others, if only through others.

    >>> from pushsum_opt.graphs import OnePeerExponential, Ring
    >>> rounds_to_reach_all(OnePeerExponential(), 8), rounds_to_reach_all(Ring(), 5), rounds_to_reach_all(Ring(), 1)
    (5, 4, 0)
    """
    if size == 1:
        return 0
    window = graph.window(size)
    everyone = (1 << size) - 1
    heard = [1 << rank for rank in range(size)]
    rounds = 0
    while any(ranks != everyone for ranks in heard) and rounds < size * window:
        before = list(heard)
        for rank in range(size):
            for peer in graph.out_peers(rank, size, rounds):
                heard[peer] |= before[rank]
        rounds += 1
    return rounds + window - 1  # news that comes in the middle of a window waits for the next one
