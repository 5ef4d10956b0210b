"""The folder of a run in the memory of a host: two files for each of its ranks, and who may write them.

A slot is a pair of files. A rank takes the lowest one that no living process holds, by a lock that ends with the
process. So a job that is started again, its ranks numbered otherwise, writes over the files that are there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError, ConfigurationError
from .files import write_whole
from .memory_file import About, read_about

__all__ = ["MemoryFolder", "Slot", "forget_name", "name_of_run", "usable_memory"]

NAMED = "memory.json"
"""In the directory of the checkpoints: the name of the folder in memory that belongs to it. Where the directory is
deleted, what is left in memory is not found any more."""
_OF = "of.json"
_PAIR = ("a", "b")


def usable_memory(path: str | os.PathLike[str]) -> Path:
    """Return the directory in memory.

    Raises:
        ConfigurationError: this host has none there.
    """
    found = Path(path)
    if not found.is_dir() or not os.access(found, os.W_OK):
        raise ConfigurationError(
            f"memory_directory={str(path)!r}: expected a directory of this host that is kept in memory (tmpfs) and can "
            "be written to. Linux has /dev/shm; name another one, or leave memory_every out"
        )
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise ConfigurationError("memory_every: this system has no file locks (fcntl). Leave it out") from None
    return found


def name_of_run(directory: Path) -> str:
    """Return the name that goes with a directory of checkpoints; give it one if it has none. For one rank to call."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / NAMED
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        name = json.loads(file.read_text(encoding="utf-8"))["folder"]
        if isinstance(name, str) and name.isalnum():
            return name
    name = secrets.token_hex(8)
    write_whole(file, lambda out: out.write(json.dumps({"folder": name}).encode() + b"\n"))
    return name


def forget_name(directory: Path) -> None:
    """Remove what :func:`name_of_run` wrote: nothing is left in memory."""
    with contextlib.suppress(FileNotFoundError):
        (directory / NAMED).unlink()


class Slot:
    """Two files that one rank writes in turn.

    Args:
        folder: where they are.
        number: which pair.
        lock: held as long as this process lives, or until :meth:`release`.
    """

    def __init__(self, folder: Path, number: int, lock: int) -> None:
        self.number = number
        self.files = tuple(folder / f"{number:04d}.{one}" for one in _PAIR)
        self._lock: int | None = lock
        self._process = os.getpid()

    def remove(self) -> None:
        """Remove both files."""
        for file in self.files:
            with contextlib.suppress(FileNotFoundError):
                file.unlink()

    def release(self) -> None:
        """Let another process take it.

        Forked children, such as workers of a DataLoader, hold the same lock: closing it here would leave it with them.
        """
        import fcntl

        if self._lock is not None:
            if os.getpid() == self._process:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None


class MemoryFolder:
    """The folder of one run on this host.

    Args:
        memory: a directory in memory, such as /dev/shm.
        name: as :func:`name_of_run` gave it, the same on all ranks.
        directory: of the checkpoints, to recognise what an earlier run there has left.

    Raises:
        CheckpointError: another user has a folder of this name.
    """

    def __init__(self, memory: Path, name: str, directory: Path) -> None:
        self._prefix = f"pushsum-{os.getuid()}-"
        self.path = memory / f"{self._prefix}{name}"
        self._of = str(directory.resolve())
        self._remove_forgotten(memory)
        self.path.mkdir(mode=0o700, exist_ok=True)
        self._refuse_foreign()
        with contextlib.suppress(FileNotFoundError):
            (self.path / _OF).write_text(json.dumps(self._of), encoding="utf-8")

    def _refuse_foreign(self) -> None:
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise CheckpointError(f"{self.path}: expected a directory of this user, got one of user {found.st_uid}")

    def _remove_forgotten(self, memory: Path) -> None:
        """Remove what a run with the same directory of checkpoints has left, before that directory was made anew."""
        for path in memory.glob(f"{self._prefix}*"):
            with contextlib.suppress(OSError, ValueError):
                mine = path.lstat().st_uid == os.getuid() and not path.is_symlink()
                same = json.loads((path / _OF).read_text(encoding="utf-8")) == self._of
                if mine and same and path != self.path:
                    shutil.rmtree(path, ignore_errors=True)

    def take(self) -> Slot:
        """Return the lowest slot that is free, held by this process from now on."""
        import fcntl

        number = 0
        while True:
            self.path.mkdir(mode=0o700, exist_ok=True)  # the last rank of another job may have removed it
            lock = os.open(self.path / f"{number:04d}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Slot(self.path, number, lock)
            except BlockingIOError:
                os.close(lock)
                number += 1

    def parts(self) -> Iterator[tuple[Path, About]]:
        """List the valid parts on this host, of all its ranks and runs."""
        for path in sorted(self.path.glob("[0-9]*.[ab]")):
            about = read_about(path)
            if about is not None:
                yield path, about

    def remove_others(self, run: str) -> None:
        """Remove the parts of other runs, where no process holds their slots."""
        for path, about in list(self.parts()):
            if about.run != run:
                _remove_unheld(path)

    def remove_unheld(self) -> None:
        """Remove all parts, valid or not, whose slots no process holds."""
        with contextlib.suppress(FileNotFoundError):  # another rank removes the folder
            for path in list(self.path.glob("[0-9]*.[ab]")):
                _remove_unheld(path)

    def remove_if_empty(self) -> None:
        """Remove the folder, unless it holds parts."""
        with contextlib.suppress(FileNotFoundError):
            if not any(self.path.glob("[0-9]*.[ab]")):
                shutil.rmtree(self.path, ignore_errors=True)


def _remove_unheld(part: Path) -> None:
    import fcntl

    with contextlib.suppress(OSError):
        lock = os.open(part.with_suffix(".lock"), os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
        finally:
            os.close(lock)
