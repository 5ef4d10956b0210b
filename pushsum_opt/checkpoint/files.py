"""Files that are complete or absent, and whose length and hash show any change."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from ..errors import CheckpointError
from .nesting import endless
from .refused import first_line, load_safely, no_end, refused
from .safe_types import decode, encode

__all__ = ["TEMPORARY", "digest", "load_tensors", "save_tensors", "sync_directory", "write_whole"]

TEMPORARY = ".partial"
"""What the name of a file ends in while it is being written."""


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name, bring it to the disk, and give it its name: it is whole or not there."""
    partial = path.with_name(path.name + TEMPORARY)
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    if os.name == "nt":  # Windows cannot open folders, and writes names by itself
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Hashing(io.RawIOBase):
    """Passes on what is written, and keeps its hash and length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.bytes = 0
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        if self.error is not None:
            return 0
        try:
            written = self._file.write(data)
        except BaseException as error:
            self.error = error  # torch replaces this error, or swallows it at the end of the file
            raise
        self.hash.update(data)
        self.bytes += memoryview(data).nbytes
        return written


def save_tensors(path: Path, value: Any) -> dict[str, Any]:
    """Write nested containers of tensors and plain values; return the file's ``bytes`` and ``sha256``.

    Values of common types that torch's safe loader does not know are written as in ``safe_types.py``.

    Raises:
        CheckpointError: torch could not read it back without running code from the file; it names what and where.
    """
    found = endless(value)
    if found is not None:
        raise CheckpointError(no_end(*found))
    value = encode(value)
    counted: list[_Hashing] = []

    def write(file: IO[bytes]) -> None:
        counted.append(_Hashing(file))
        try:
            torch.save(value, cast(IO[bytes], counted[0]))
        except Exception as error:
            if counted[0].error is None:  # an error of this file's contents, not of the disk
                raise CheckpointError(f"{path}: {refused(value, error)}") from error
        finally:
            if counted[0].error is not None:
                raise counted[0].error
        file.flush()
        try:
            load_safely(file.name, mmap=True)
        except Exception as error:
            raise CheckpointError(f"{path}: {refused(value, error)}") from error

    write_whole(path, write)
    return {"bytes": counted[0].bytes, "sha256": counted[0].hash.hexdigest()}


def load_tensors(path: Path) -> Any:
    """Read what :func:`save_tensors` wrote, onto the CPU, without running code from the file.

    Raises:
        CheckpointError: it is not such a file.
    """
    try:
        loaded = load_safely(path)
    except Exception as error:
        raise CheckpointError(f"{path}: torch cannot read it: {first_line(error)}") from error
    return decode(loaded)


def digest(path: Path) -> str:
    """Return the sha256 of a file, as sha256sum(1) does."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 22):
            found.update(data)
    return found.hexdigest()
