"""How a waiting rank leaves the processor to others between two polls."""

from __future__ import annotations

import os
import time

__all__ = ["LONGEST_NAP_S", "nap"]

YIELD_FOR_S = 1e-4
"""At first a wait only gives up its time slice: the next piece of a transfer is microseconds away."""
NAP_SHARE = 0.005
"""After that, a nap takes this share of the time waited so far, so naps hardly lengthen any wait."""
SHORTEST_NAP_S, LONGEST_NAP_S = 50e-6, 250e-6
"""The kernel adds 50 to 80 microseconds to each nap."""


def nap(waited: float) -> None:
    """Give up the processor briefly. The longer this wait has lasted, the longer the nap.

    A blocked MPI call would spin instead, and slow down the ranks that compute on the same cores.

    Args:
        waited: seconds since the wait began.
    """
    if waited < YIELD_FOR_S:
        _yield()
    else:
        time.sleep(min(LONGEST_NAP_S, max(SHORTEST_NAP_S, NAP_SHARE * waited)))


def _yield() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:  # Windows: a sleep of 0 is the same
        time.sleep(0)
