"""Another address of :mod:`pushsum_opt.observe`, where listeners are at home."""

from __future__ import annotations

from .observe.events import Events, Listener

__all__ = ["Events", "Listener"]
