"""What ranks say to each other beside the rounds: every wait has a deadline, and names who is missing."""

from __future__ import annotations

from .channel import Channel
from .gather_once import gather_once

__all__ = ["Channel", "gather_once"]
