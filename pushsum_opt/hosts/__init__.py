"""Ranks that share a host: gradients averaged inside, the model split over the lanes outside.

:mod:`.gradients` needs torch, so it is not imported here.
"""

from __future__ import annotations

from .groups import Hosts
from .participant import Participant

__all__ = ["Hosts", "Participant"]
