"""Numbers of a run: step times, waits, ages, bytes, and what the user adds; written where a user wants them."""

from __future__ import annotations

from .metrics import Metrics

__all__ = ["Metrics"]
