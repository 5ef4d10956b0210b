"""One plain model out of a checkpoint of many ranks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import directory as directories
from .directory import read_part
from .weighted import WeightedSum

__all__ = ["consolidate"]


def consolidate(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the exact weighted average of a checkpoint's models as a plain state_dict. One process, without MPI.

    What :meth:`~pushsum_opt.PushSumOptimizer.averaged` shows: sum of the numerators, residuals and messages in flight
    included, over the sum of the mass, in float64; floating buffers are averaged with the data weights (unless
    ``buffers="local"``); anything else is rank 0's. Needs memory for one model in float64 and one rank's file.

    Args:
        directory: what was passed to save (then the newest checkpoint in it), or the directory of one checkpoint.

    Returns:
        What ``model.load_state_dict()`` takes. Of a run whose optimizer was wrapped without a model: its parameters by
        the names that the optimizer has for them.

    Raises:
        CheckpointError: there is none, or a file is missing, cut off, changed or of another run.
    """
    root = Path(directory)
    found = directories.locate(root)
    if found is None:
        raise directories.missing(root)
    path, manifest = found
    first = read_part(path, manifest, 0)
    total = WeightedSum(first)
    total.add(first)
    for rank in range(1, manifest.size):
        total.add(read_part(path, manifest, rank))
    points = first.get("points", ())  # optimizer state, which no model takes
    parameters = {name: value for name, value in total.parameters(first).items() if name not in points}
    return total.model(first) or parameters
