"""States of a whole run: save, resume, resume on another number of ranks, stop when asked to and go on later.

One directory holds several checkpoints. Each is a directory of its own: a file per rank, and ``manifest.json``, which
is written last. What has no manifest is not a checkpoint, so a crash at any moment leaves the ones before it whole.
"""

from __future__ import annotations

from .consolidating import consolidate
from .loading import Resumed, load
from .saver import REQUEUE, Saver
from .saving import save

__all__ = ["REQUEUE", "Resumed", "Saver", "consolidate", "load", "save"]
