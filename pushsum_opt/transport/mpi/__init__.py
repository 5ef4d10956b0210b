"""MPI, through mpi4py. Importing this room starts MPI."""

from __future__ import annotations

from .losses import can_be_freed, lost_by
from .transport import MpiTransport

__all__ = ["MpiTransport", "can_be_freed", "lost_by"]
