"""Exit codes of a rank that mean something to a launcher or a scheduler."""

from __future__ import annotations

__all__ = ["INTERRUPTED", "REQUEUE"]

INTERRUPTED = 130
"""Ended by Ctrl-C, as shells report it: 128 and the number of SIGINT."""

REQUEUE = 75
"""The run was saved; start it again. EX_TEMPFAIL of sysexits.h."""
