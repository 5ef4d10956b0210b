"""Notes for ``pushsum run``: whether ranks have ended, and which round they have saved last."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from . import settings

__all__ = ["begins", "comes_to_its_end", "ends", "is_lost", "note", "starts", "without_end"]


def starts(rank: int) -> None:
    """Write down that the program of this rank uses the library: until :func:`comes_to_its_end`, it runs."""
    _write(f"{rank}.runs", "")


def comes_to_its_end(rank: int) -> None:
    """Write down that the program of this rank is over, and all that it had open is closed."""
    _rename(f"{rank}.runs", f"{rank}.over")


def without_end(folder: Path, *, survivors: bool) -> list[int]:
    """Return the ranks on this host whose programs have not come to an end, though the launcher has ended.

    Args:
        survivors: the job goes on without ranks that die: then none is named where one here has come to its end.
    """
    if survivors and any(folder.glob("*.over")):
        return []
    return sorted(int(note.stem) for note in folder.glob("*.runs"))


def begins(rank: int) -> None:
    """Write down that this rank has begun: if the job ends before :func:`ends`, it has died.

    The exit code does not always say so: where Open MPI's mpirun has lost a host, it ends with 0.
    """
    _write(f"{rank}.begun", "")


def ends(rank: int) -> None:
    """Write down that this rank has ended well."""
    _rename(f"{rank}.begun", f"{rank}.ended")


def is_lost(rank: int) -> None:
    """Write down that a rank has died, and that the others have gone on without it. Idempotent."""
    _rename(f"{rank}.begun", f"{rank}.lost")


def note(rank: int, round: int) -> None:
    """Write down a round that was saved."""
    _write(f"{rank}.saved", f"{round}\n")


def _rename(name: str, other: str) -> None:
    folder = settings.read().progress
    if folder is not None:
        with contextlib.suppress(OSError):
            (Path(folder) / name).rename(Path(folder) / other)


def _write(name: str, text: str) -> None:
    """Write where the launcher looks: on its own host, or in a folder that it shares with others."""
    folder = settings.read().progress
    if folder is None:
        return
    with contextlib.suppress(OSError):  # another host: the launcher hears of it from a rank on its own
        partial = Path(folder) / f".{name}"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, Path(folder) / name)
