"""How many rounds it takes until numbers of all ranks have come to their mean."""

from __future__ import annotations

import numpy as np

from .base import Graph

__all__ = ["rounds_to_settle"]

COLUMNS = 4
"""Sets of numbers that are tried."""


def rounds_to_settle(graph: Graph, size: int, left: float, most: int) -> int:
    """Return after how many rounds, from round 0 on, numbers differ from their mean by at most a part of what they did.

    Numbers that are drawn are mixed by push-sum; the same on every rank, so all find the same.

    Args:
        left: that part.
        most: what is returned where it takes longer.

    >>> from pushsum_opt.graphs import OnePeerExponential, Ring
    >>> rounds_to_settle(OnePeerExponential(), 8, 0.05, 100), rounds_to_settle(Ring(), 4, 0.05, 100)
    (3, 8)
    """
    start = np.random.default_rng(size).integers(-1000, 1000, (size, COLUMNS)).astype(np.float64)
    sums = np.column_stack([np.ones(size), start])
    mean = start.mean(axis=0)
    allowed = left * np.abs(start - mean).max(axis=0)
    for rounds in range(most):
        if (np.abs(sums[:, 1:] / sums[:, :1] - mean) <= allowed).all():
            return rounds
        edges = [(rank, *give) for rank in range(size) for give in graph.gives(rank, size, rounds)]
        if not edges:
            continue
        senders, receivers, shares = zip(*edges, strict=True)
        given = np.array(shares)[:, None] * sums[list(senders)]
        np.subtract.at(sums, list(senders), given)
        np.add.at(sums, list(receivers), given)
    return most
