"""Notes for ``pushsum run --restarts``: whether ranks have ended, and which round they have saved last."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .. import settings

__all__ = ["begins", "ends", "is_lost", "note"]


def begins(rank: int) -> None:
    """Write down that this rank has begun: if the job ends before :func:`ends`, it has died.

    The exit code does not always say so: where Open MPI's mpirun has lost a host, it ends with 0.
    """
    _write(f"{rank}.begun", "")


def ends(rank: int) -> None:
    """Write down that this rank has ended well."""
    folder = settings.read().progress
    if folder is not None:
        with contextlib.suppress(OSError):
            (Path(folder) / f"{rank}.begun").rename(Path(folder) / f"{rank}.ended")


def is_lost(rank: int) -> None:
    """Write down that a rank has died, and that the others have gone on without it. Idempotent."""
    folder = settings.read().progress
    if folder is not None:
        with contextlib.suppress(OSError):
            (Path(folder) / f"{rank}.begun").rename(Path(folder) / f"{rank}.lost")


def note(rank: int, round: int) -> None:
    """Write down a round that was saved."""
    _write(f"{rank}.saved", f"{round}\n")


def _write(name: str, text: str) -> None:
    """Write where the launcher looks: on its own host, or in a folder that it shares with others."""
    folder = settings.read().progress
    if folder is None:
        return
    with contextlib.suppress(OSError):  # another host: the launcher hears of it from a rank on its own
        partial = Path(folder) / f".{name}"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, Path(folder) / name)
