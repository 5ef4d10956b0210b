"""One file in memory that is written over and over: valid as a whole, or not valid.

Layout: a header of 16 KiB, the tensors, each from a multiple of 64 bytes on, and the tree that is left of the state.
The header begins with a word that says that the file is valid. It is cleared before anything else is written, and set
when all the rest is there. So a process that is killed at any byte leaves a file that says that it is not valid. (It
says nothing of a host that loses power: then all of its memory is gone.)

The tensors have no hash, as that would cost more than writing them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .apart import Apart, Place, pack_tree, put_together, unpack_tree

__all__ = ["About", "MemoryFile", "read_about", "read_part"]

HEADER = 1 << 14
VALID = b"pushsum1"
_EMPTY = bytes(len(VALID))
_AT = len(VALID) + 32  # the word, the hash of what the file says of itself, and then that
ALIGNED = 64


@dataclass(frozen=True)
class About:
    """What a part in memory says of itself."""

    run: str
    """Names the run that saved it."""

    generation: int
    """Counts the memory checkpoints of that run; the parts of one generation belong together."""

    rank: int
    size: int
    round: int
    place: tuple[int, int, int]
    """(participant in the gossip, lane, lanes)."""

    weight: float
    """w, with the mass that this rank has given and nobody has merged."""

    taken_back: float
    """How much of that mass it is."""

    initial: float
    """a, the mass with which the rank began."""

    in_step: bool
    """Whether all parts of the generation are of the same round, so that the masses sum to n."""

    format: int = 1


class MemoryFile:
    """A file that is mapped into this process as long as this lives.

    Args:
        path: made when it is first written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: Tensor | None = None

    def write(self, apart: Apart, about: About, *, check: bool = True) -> int:
        """Replace what the file holds; return its bytes.

        Args:
            check: make sure that the tree can be read back.

        Raises:
            CheckpointError: the state holds what could not be read back.
            OSError: there is no room for it. What the file held is still there.
        """
        places = [Place.of(tensor) for tensor in apart.tensors]
        starts, end = _starts(places)
        rows = json.dumps([[place.dtype, place.shape, place.stride] for place in places])  # faster than a pickle of it
        tree = pack_tree({"mark": apart.mark, "tree": apart.tree, "places": rows}, check=check)
        self._make_room(end + len(tree))
        self._store(0, _EMPTY)
        for tensor, place, start in zip(apart.tensors, places, starts, strict=True):
            self._store_tensor(start, place, tensor)
        self._store(end, tree)
        says = json.dumps({**asdict(about), "tree": [end, len(tree), hashlib.sha256(tree).hexdigest()]}).encode()
        if len(says) > HEADER - _AT - 8:
            raise CheckpointError(f"{self.path}: {len(says)} bytes about a part: expected at most {HEADER - _AT - 8}")
        self._store(len(VALID), hashlib.sha256(says).digest() + len(says).to_bytes(8, "little") + says)
        self._store(0, VALID)
        return end + len(tree)

    def reserve(self, nbytes: int) -> None:
        """Take the room for so many bytes now.

        Raises:
            OSError: there is none.
        """
        self._make_room(nbytes)

    def close(self) -> None:
        """Unmap it."""
        self._bytes = None

    def _make_room(self, nbytes: int) -> None:
        if self._bytes is not None and self._bytes.numel() >= nbytes:
            return
        self._bytes = None
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        before = os.fstat(handle).st_size
        try:
            # Room that is not there now would be a SIGBUS when it is written to.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, nbytes)
            elif os.fstat(handle).st_size < nbytes:
                os.truncate(handle, nbytes)
            held = os.fstat(handle).st_size
        except OSError:
            with contextlib.suppress(OSError):  # give back what was taken before the room ran out, and no more
                os.truncate(handle, before)
            raise
        finally:
            os.close(handle)
        self._bytes = torch.from_file(str(self.path), shared=True, size=held, dtype=torch.uint8)

    def _store(self, start: int, data: bytes) -> None:
        assert self._bytes is not None
        self._bytes[start : start + len(data)].numpy()[:] = np.frombuffer(data, np.uint8)

    def _store_tensor(self, start: int, place: Place, tensor: Tensor) -> None:
        assert self._bytes is not None
        place.view(self._bytes[start : start + place.nbytes]).copy_(tensor)


def _starts(places: list[Place]) -> tuple[list[int], int]:
    """Return where each tensor begins, and the first byte behind them."""
    starts, end = [], HEADER
    for place in places:
        starts.append(end)
        end += -(-place.nbytes // ALIGNED) * ALIGNED
    return starts, end


# ---------------------------------------------------------------------- reading


def read_about(path: Path) -> About | None:
    """Return what a file says of its part; None where it is not valid, not there, or not ours."""
    says = _says(path)
    if says is None:
        return None
    says.pop("tree")
    return About(**{**says, "place": tuple(says["place"])})


def read_part(path: Path, about: About) -> dict[str, Any]:
    """Read a part, as copies of its tensors.

    Raises:
        CheckpointError: it is no longer there, or it was changed.
    """
    says = _says(path)
    if says is None or read_about(path) != about:
        raise CheckpointError(f"{path}: expected the part of rank {about.rank} in round {about.round}, and it is gone")
    start, length, sha256 = says["tree"]
    with open(path, "rb") as file:
        file.seek(start)
        packed = file.read(length)
        if hashlib.sha256(packed).hexdigest() != sha256:
            raise CheckpointError(
                f"{path}: expected sha256 {sha256[:12]}... of its last {length} bytes: it was changed"
            )
        held: Mapping[str, Any] = unpack_tree(packed)
        places = [Place(dtype, tuple(shape), tuple(stride)) for dtype, shape, stride in json.loads(held["places"])]
        starts, _ = _starts(places)
        tensors = [_read_tensor(file, begin, place) for begin, place in zip(starts, places, strict=True)]
    part: dict[str, Any] = put_together(held["tree"], held["mark"], tensors)
    return part


def _read_tensor(file: Any, start: int, place: Place) -> Tensor:
    flat = torch.empty(place.nbytes, dtype=torch.uint8)
    file.seek(start)
    if file.readinto(flat.numpy()) != place.nbytes:
        raise CheckpointError(f"{file.name}: expected {place.nbytes} bytes at {start}: it was cut off")
    return place.view(flat)


def _says(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER)
    except OSError:
        return None
    if not header.startswith(VALID):
        return None
    length = int.from_bytes(header[_AT : _AT + 8], "little")
    says = header[_AT + 8 : _AT + 8 + length]
    if hashlib.sha256(says).digest() != header[len(VALID) : _AT]:
        return None
    found: dict[str, Any] = json.loads(says)
    return found if found.get("format") == 1 else None
