"""Notes for ``pushsum run``: whether ranks have ended, and which round they have saved last."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from . import settings

__all__ = ["all_are_lost", "begins", "ends", "is_lost", "joins", "leaves", "note"]


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


def joins(rank: int, size: int) -> None:
    """Write down that this rank takes part in a job of so many ranks that goes on without those that die."""
    _write(f"{rank}.joined", f"{size}\n")


def leaves(rank: int) -> None:
    """Write down that this rank has come to the end of its program."""
    _write(f"{rank}.left", "")


def all_are_lost(folder: Path) -> bool:
    """Tell whether all ranks of a job took part in such a job, and none has come to its end."""
    sizes = [note.read_text(encoding="utf-8").strip() for note in folder.glob("*.joined")]
    return bool(sizes) and sizes[0] == str(len(sizes)) and not any(folder.glob("*.left"))


def _write(name: str, text: str) -> None:
    """Write where the launcher looks: on its own host, or in a folder that it shares with others."""
    folder = settings.read().progress
    if folder is None:
        return
    with contextlib.suppress(OSError):  # another host: the launcher hears of it from a rank on its own
        partial = Path(folder) / f".{name}"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, Path(folder) / name)
