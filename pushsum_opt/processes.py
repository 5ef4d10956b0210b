"""Ends processes that this library started, also where the system has no process groups."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

__all__ = ["end_group", "user_is_root"]


def end_group(child: subprocess.Popen[Any]) -> None:
    """Kill a child that was started with ``start_new_session=True``, and its own children, which hold pipes open."""
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    else:  # Windows
        child.kill()


def user_is_root() -> bool:
    """Tell whether this is the root user: for root, Open MPI's mpirun needs an extra option."""
    return hasattr(os, "geteuid") and os.geteuid() == 0
