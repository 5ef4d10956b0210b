"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["usable_cores"]


def usable_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Count the physical cores that this process may run on: hardware threads of one core count once, as in mpirun."""
    if not hasattr(os, "sched_getaffinity"):  # macOS and Windows do not say it
        return os.cpu_count() or 1
    processors = os.sched_getaffinity(0)
    try:
        return len({(topology / f"cpu{one}/topology/thread_siblings_list").read_text() for one in processors})
    except OSError:  # some containers hide it
        return len(processors)
