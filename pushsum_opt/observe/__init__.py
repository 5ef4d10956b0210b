"""The named points of a run, where listeners attach; and the listeners that the library itself brings."""

from __future__ import annotations

from .events import Listener
from .metrics import Metrics
from .spans import span
from .timeline import Timeline

__all__ = ["Listener", "Metrics", "Timeline", "span"]
