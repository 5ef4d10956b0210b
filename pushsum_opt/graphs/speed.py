"""Warns of a graph that mixes much more slowly than another one of the same cost."""

from __future__ import annotations

import math
import warnings
from itertools import islice

import numpy as np

from .base import Graph
from .base_k import BaseK
from .checks import declares
from .default import default
from .sparse import SparseRounds

__all__ = ["SlowMixingWarning", "warn_if_slow"]

ACCEPTED_ERROR = 1e-2
"""Part of the disagreement that may be left then."""
TIMES_THE_BEST = 10
"""A graph is tried for so many times the rounds of the best graph."""
MOST_PEERS = 16
"""The best graph is sought among graphs of at most so many peers."""
MOST_PAIRS = 1 << 16
"""(rank, round) pairs that may be asked for; where more are needed, the graph is not tried."""


class SlowMixingWarning(UserWarning):
    """The graph needs many more rounds than another that costs the same."""


def warn_if_slow(graph: Graph, size: int, stacklevel: int = 2) -> None:
    """Warn when 10 times the rounds of the best graph of as many peers leave more than 1e-2 of the disagreement.

    It is tried on a few probe vectors, so some slow graphs are not noticed. Families known to be fast are not tried.
    """
    parts = graph.parts(size)
    for part, its_size in parts:  # of a hierarchy, a Kronecker product, the slower level decides
        warn_if_slow(part, its_size, stacklevel + 1)
    if parts:
        return
    if size < 3 or declares(graph, "mixes_fast"):
        return
    rounds = SparseRounds(graph, size)
    looked_at = list(islice(rounds, min(graph.window(size), max(1, MOST_PAIRS // size), 16)))
    peers = math.ceil(sum(one.edges for one in looked_at) / size / len(looked_at))
    peers = min(max(peers, 1), MOST_PEERS)
    best = default(size) if peers == 1 else BaseK(peers)
    exact = best.period(size) or 1
    left = _left_over(rounds, size, TIMES_THE_BEST * exact)
    if left > ACCEPTED_ERROR:
        warnings.warn(
            f"{graph!r} mixes slowly at {size} ranks: {TIMES_THE_BEST * exact} rounds leave {left:.2g} of the "
            f"disagreement; graphs.{best!r} also has {peers} peer{'s' if peers > 1 else ''} per rank and averages "
            f"exactly in {exact} rounds. `pushsum graphs --size {size}` compares all graphs",
            SlowMixingWarning,
            stacklevel=stacklevel + 1,
        )


def _left_over(rounds: SparseRounds, size: int, limit: int) -> float:
    """Return the largest part of a probe's disagreement that is left after so many rounds, or as soon as it is small.

    0 where it would take too long to find out.
    """
    place = np.arange(size) * (2 * np.pi / size)
    random = np.random.default_rng(0).normal(size=(size, 4))
    # Slow graphs are slow for smooth differences between far ranks: waves, a ramp and halves, besides noise.
    smooth = [np.cos(place), np.sin(place), place, place < np.pi]
    z = np.column_stack([*smooth, random])
    z -= z.mean(axis=0)
    z /= np.sqrt((z**2).mean(axis=0))
    mass = np.column_stack([z, np.ones(size)])
    left = 1.0
    for count, one in enumerate(islice(rounds, limit)):
        if size * min(count, rounds.period or count) > MOST_PAIRS:
            return 0.0
        mass = one.apply(mass)
        estimate = mass[:, :-1] / mass[:, -1:]
        left = float(np.sqrt((estimate**2).mean(axis=0)).max())
        if left <= ACCEPTED_ERROR:
            break
    return left
