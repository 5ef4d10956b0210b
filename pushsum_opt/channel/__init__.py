"""What ranks say to each other beside the rounds: every wait has a deadline, and names who is missing."""

from __future__ import annotations

from .channel import Channel

__all__ = ["Channel"]
