"""A file into which one rank writes lines as it goes, never more than so many bytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..log import log

__all__ = ["OLDER", "BoundedFile", "file_name"]

OLDER = ".older.jsonl"
"""The ending of the file that holds the lines before those of the other one."""

LINES_HELD = 512
"""So many lines stay in memory at most."""


def file_name(what: str, run: str, rank: int) -> str:
    """Return the name of a rank's file.

    Args:
        what: what the file holds, for the beginning of its name.
        run: a name that no other run has.
    """
    return f"{what}-{run}-{rank:05d}.jsonl"


class BoundedFile:
    """Appends lines, and forgets the oldest ones where there would be more than ``limit`` bytes.

    There are two files of half the size each: where the newer one is full it takes the place of the older one. What
    was written outlives the process, however that ends: it is in the hands of the operating system. Where the disk is
    full, or the folder is gone, a warning is logged, and nothing more is written: training goes on.

    Args:
        rank, what: named in the warning.
        head: returns the lines with which each of the two files begins.
    """

    def __init__(self, path: Path, limit: int, rank: int, head: Callable[[], str], what: str = "timeline") -> None:
        self._path, self._limit, self._rank, self._head = path, limit // 2, rank, head
        self._what = what
        self._lines: list[str] = []
        self._lock = threading.RLock()
        self._size = 0
        self._process = os.getpid()
        self._file: int | None = None
        with self._giving_up():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()

    def append(self, line: str) -> None:
        """Take a line, which ends in a line break."""
        with self._lock:
            if self._file is None:
                return
            self._lines.append(line)
            if len(self._lines) >= LINES_HELD:
                self.flush()

    def flush(self) -> None:
        """Write what is held."""
        with self._lock:
            if os.getpid() != self._process:  # a forked child: these lines are its parent's
                self._lines.clear()
            if self._file is None or not self._lines:
                return
            data = "".join(self._lines).encode()
            self._lines.clear()
            with self._giving_up():
                if self._size + len(data) > self._limit:
                    os.close(self._file)
                    self._file = None
                    os.replace(self._path, self._path.with_suffix(OLDER))
                    self._open()
                self._write(data)

    def close(self) -> None:
        """Write what is held, and take no more. Idempotent."""
        with self._lock:
            self.flush()
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._size = 0
        self._write(self._head().encode())

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._size += len(data)
        while data:
            data = data[os.write(self._file, data) :]

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Inside, an error of the file system ends the file and not the run."""
        try:
            yield
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Write nothing more."""
        if self._file is not None:
            os.close(self._file)
        self._file = None
        self._lines.clear()
        log.warning(
            "rank %d: its %s ends here, because %s cannot be written: %s. Is the disk full?",
            self._rank,
            self._what,
            self._path,
            error,
        )
