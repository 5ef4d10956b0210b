"""The graph that is used when none is named."""

from __future__ import annotations

from .base import Graph
from .base_k import BaseK
from .exponential import OnePeerExponential

__all__ = ["default"]


def default(size: int) -> Graph:
    """Return the best graph of one message per rank and round: exact in finitely many rounds at every size.

    One-peer exponential at powers of two, where it averages in log2 n rounds; Base-2 elsewhere.

    >>> default(32), default(33)
    (OnePeerExponential(), BaseK(1))
    """
    return OnePeerExponential() if size & (size - 1) == 0 else BaseK(1)
