"""Advice on how near the ranks are to each other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ....errors import GraphError
from ....graphs import default, from_edges
from ....mixing import Mixing, analyse
from ..reading import RankLog
from ..units import figures_text, percent
from .evidence import Advice, Evidence

__all__ = ["recorded_mixing", "ranks_are_far_apart", "the_graph_mixes_slowly"]

NEAR = 1e-3
"""Rounds are counted until the ranks are so near, as a part of the distance from which they started."""
MUCH_SLOWER = 1.5
FAR = 0.2
"""Of what training moves a model: ranks that are nearer to each other are left alone."""
FEWEST_ROUNDS = 100
"""In fewer rounds a model has not moved enough to compare with."""
MOST_PARTICIPANTS = 512
"""Beyond, the analysis takes too long for a report."""


def the_graph_mixes_slowly(evidence: Evidence) -> Advice | None:
    """Another graph with as few messages would bring the ranks together in far fewer rounds."""
    found = recorded_mixing(evidence)
    if found is None:
        return None
    other = _default_mixing(found.size)
    needed, possible = found.rounds_to(NEAR), other.rounds_to(NEAR)
    if possible is None or (needed is not None and needed < max(MUCH_SLOWER * possible, possible + 2)):
        return None
    takes = "does not come" if needed is None else f"needs {needed} rounds"
    return Advice(
        f"{evidence.about['graph']} {takes} to 1e-3 of the first consensus distance, and {other.graph} needs "
        f"{possible} with {_messages(other.messages)} a round (this one sends {_messages(found.messages)}): "
        f"leave graph= out, which takes {other.graph} at {found.size} ranks."
    )


def _messages(number: float) -> str:
    return "1 message" if abs(number - 1) < 0.005 else f"{number:.2g} messages"


def recorded_mixing(evidence: Evidence) -> Mixing | None:
    """Return how the graph mixes that the ranks have written down; None where that is not known as a whole."""
    about = evidence.about
    size: int = about["participants"]
    rounds = {log.about["participant"]: log.about["rounds"] for log in evidence.run.ranks.values()}
    if not 2 <= size <= MOST_PARTICIPANTS or len(rounds) < size:
        return None
    length = min(map(len, rounds.values()))
    edges = [
        tuple((sender, peer, share) for sender in sorted(rounds) for peer, share in rounds[sender][k])
        for k in range(length)
    ]
    found = _mixing(tuple(edges), size)
    needed = None if found is None else found.rounds_to(NEAR)
    known = about["rounds_are_a_period"] or (needed is not None and needed <= length)
    return found if known else None


@lru_cache(maxsize=8)
def _mixing(edges: Sequence[Sequence[Any]], size: int) -> Mixing | None:
    try:
        return analyse(from_edges(*edges), size)
    except GraphError:
        return None  # such as one that is not connected any more, as ranks are missing


@lru_cache(maxsize=8)
def _default_mixing(size: int) -> Mixing:
    return analyse(default(size), size)


def ranks_are_far_apart(evidence: Evidence) -> Advice | None:
    """The ranks' models differ by much of what training moves them."""
    apart = [one.consensus for one in evidence.figures.ranks if one.consensus is not None]
    moved = [found for log in evidence.run.ranks.values() if (found := _last_movement(log)) is not None]
    if not apart or not moved:
        return None
    distance, rounds = statistics.median(apart), statistics.median(rounds for _, rounds in moved)
    way = statistics.median(way for way, _ in moved)
    if rounds < FEWEST_ROUNDS or way <= 0 or distance < FAR * way:
        return None
    return Advice(
        f"The consensus distance is {figures_text(distance)}, {percent(distance / way)} of what the last {rounds:.0f} "
        f"rounds moved a model ({figures_text(way)}). An exact average now and then (PeriodicAverage), a lower "
        "learning rate, or a graph that mixes faster brings the ranks together; evaluate with averaged()."
    )


def _last_movement(log: RankLog) -> tuple[float, float] | None:
    """Return how far a rank's model has moved, and in how many rounds, as the last row says that knows."""
    known = next((row["moved"] for row in reversed(log.rows) if row.get("moved")), None)
    return None if known is None else (known["distance"], known["rounds"])
