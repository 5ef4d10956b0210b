"""The named points of a run, where listeners attach; and the listeners that the library itself brings."""

from __future__ import annotations

from .events import Listener

__all__ = ["Listener"]
