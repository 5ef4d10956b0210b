"""The clock of a rank: for deadlines, stall lines and the pace of steps. A test may give a rank a clock of its own."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "monotonic"]

Clock = Callable[[], float]
"""Returns seconds that only grow."""

monotonic: Clock = time.monotonic
