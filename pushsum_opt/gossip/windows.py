"""In which rounds what is summed over ranks begins anew: a *window* is the rounds from one beginning to the next.

A window has as many rounds as the graph needs to bring the ranks together; on a graph that averages exactly in a
period, these are whole periods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..graphs import Graph
from ..graphs.settling import rounds_to_settle

__all__ = ["Window", "window_of"]

SETTLED = 0.05
"""What is left at the end of a window of what ranks differed by; where a graph averages exactly, nothing is."""
MOST_STEPS = 128
"""Of a window: on a graph that mixes more slowly, more is left."""
ASYNCHRONOUS_WINDOWS = 2
"""An asynchronous window is so many times as long: ranks are not in step, and give less."""


class Window:
    """In which rounds ranks add what has changed, give, and read.

    Args:
        rounds: from one change to the next.
        giving: those of them, counted from 0, in which a rank gives. What it gives is merged before it gives again, so
            that late messages mix as those of synchronous rounds do.
    """

    def __init__(self, rounds: int, giving: Iterable[int]) -> None:
        self.rounds = rounds
        self.giving = frozenset(giving)

    def begins(self, round: int) -> bool:
        return round % self.rounds == 0

    def ends(self, round: int) -> bool:
        return (round + 1) % self.rounds == 0

    def gives(self, round: int) -> bool:
        return round % self.rounds in self.giving


def window_of(graph: Graph, size: int, staleness: int | str) -> Window:
    """Return the window of a graph; the same on every rank.

    >>> from pushsum_opt.graphs import OnePeerExponential
    >>> window = window_of(OnePeerExponential(), 16, 1)
    >>> window.rounds, sorted(window.giving)
    (9, [0, 2, 5, 7])
    """
    period = graph.period(size)
    steps = max(1, rounds_to_settle(graph, size, SETTLED, MOST_STEPS))
    if period is not None and period <= MOST_STEPS:
        steps = period * -(-steps // period)
    if staleness == "unbounded":
        return _every(1, ASYNCHRONOUS_WINDOWS * steps)
    apart = int(staleness) + 1
    if period is None or period > MOST_STEPS:
        return _every(apart, steps)
    in_order = _every(1 + period * -(-(apart - 1) // period), steps)
    if graph.symmetry(size) is None and in_order.rounds <= MOST_STEPS:
        return in_order
    # Of shifts the order does not matter. Where the same would come again before all have come, a round is left out.
    again = math.gcd(apart, period)
    giving = [apart * step + (step * again // period if again > 1 else 0) for step in range(steps)]
    return Window(giving[-1] + apart, giving)


def _every(apart: int, steps: int) -> Window:
    return Window(apart * steps, range(0, apart * steps, apart))
