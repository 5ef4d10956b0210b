"""An older name of :mod:`pushsum_opt.observe`, which has the listeners."""

from __future__ import annotations

from .observe.events import Events, Listener

__all__ = ["Events", "Listener"]
