"""How a rank that waits leaves the processor to whoever computes, between two looks at what has come."""

from __future__ import annotations

import os
import time

__all__ = ["LONGEST", "rest"]

PATIENCE = 1e-4  # seconds for which it only yields: while a transfer is under way, the next piece is microseconds off
PART = 0.005  # afterwards a nap is this part of what has been waited already, so naps hardly lengthen any wait,
SHORTEST, LONGEST = 50e-6, 250e-6  # within these bounds, in seconds. The kernel adds 50 to 80 microseconds to each


def _yield() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:  # Windows: a sleep of 0 is the same
        time.sleep(0)


def rest(waited: float) -> None:
    """Pause, ``waited`` seconds after the wait began: for longer and longer, for who has waited long goes on waiting.

    A blocked MPI call would spin instead, and starve the ranks that compute on the same cores.
    """
    if waited < PATIENCE:
        _yield()
    else:
        time.sleep(min(LONGEST, max(SHORTEST, PART * waited)))
