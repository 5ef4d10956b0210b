"""How the tensors of a rank are cut into chunks: pure, the same on every rank that holds the same shapes.

A chunk is the unit that is posted, received, checked and merged. It is small enough to be merged while it is still in
the cache, and holds one dtype on one device, and either parameters or buffers. A large dense tensor is sent from where
it lies, a piece per chunk; small ones, and those that need a cast or are not dense, are packed together into a slab.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from .modulo import BLOCK

__all__ = [
    "CODED",
    "HEAD_BYTES",
    "Chunk",
    "Piece",
    "TensorSpec",
    "WireFormat",
    "assign_lanes",
    "blocks_of",
    "coded_bytes",
    "coded_room",
    "is_dense",
    "layout_hash",
    "plan_chunks",
]

CODED = "int8"
"""The wire dtype of values that travel as places modulo 256."""

HEAD_BYTES = 16
"""In front of a coded chunk: whether it is whole, and for how many rounds messages are to be whole from now on."""

_BYTES_PER_BLOCK = 12  # theta and two check sums


def blocks_of(numel: int) -> int:
    """Return how many blocks so many values fill; the last one may be filled in part."""
    return -(-numel // BLOCK)


def coded_bytes(numel: int) -> int:
    """Return the bytes of a chunk in eight bits.

    >>> coded_bytes(1 << 20) / (1 << 20)
    1.0234527587890625
    """
    return HEAD_BYTES + blocks_of(numel) * _BYTES_PER_BLOCK + numel


def coded_room(numel: int, itemsize: int) -> int:
    """Return the bytes that such a chunk may take: whole, or in eight bits with its last block filled up."""
    return max(HEAD_BYTES + numel * itemsize, coded_bytes(blocks_of(numel) * BLOCK))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What all ranks must agree on about one tensor. Complex tensors are described by their real view."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: str
    itemsize: int
    device: str = "cpu"
    by_element: bool = False  # see Chunk

    @property
    def numel(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def dense(self) -> bool:
        return is_dense(self.shape, self.strides)

    @property
    def memory_order(self) -> tuple[int, ...]:
        """The axes from the slowest to the fastest in the order in which pieces count elements."""
        axes = range(len(self.shape))
        return tuple(sorted(axes, key=lambda axis: -self.strides[axis]) if self.dense else axes)


@dataclass(frozen=True)  # without slots, as Chunk
class Piece:
    """Elements [start, stop) of tensor number ``tensor``, counted in the order in which they lie in memory."""

    tensor: int
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class WireFormat:
    """The dtype in which values travel, and the bytes of one of them."""

    dtype: str
    itemsize: int
    """With CODED, the bytes of a value in a message that travels whole."""

    @property
    def coded(self) -> bool:
        """Whether values travel in eight bits, or whole: each message says which. See :mod:`.coded`."""
        return self.dtype == CODED

    def room(self, numel: int) -> int:
        """Return the bytes that so many values take on the wire, at most."""
        return coded_room(numel, self.itemsize) if self.coded else numel * self.itemsize

    def usual(self, numel: int) -> int:
        """Return the bytes that they take in most rounds."""
        return coded_bytes(numel) if self.coded else numel * self.itemsize


@dataclass(frozen=True)  # without slots: torch.compile before 2.6 keeps weak references to what a compiled step meets
class Chunk:
    """Pieces of one dtype on one device that travel together."""

    index: int
    pieces: tuple[Piece, ...]
    numel: int
    dtype: str
    wire: WireFormat
    device: str
    packed: bool  # gathered into a slab before it is sent; otherwise sent from where it lies
    by_element: bool = False
    """Each element is merged alone. Where it is inf or nan, here or there, this rank keeps its own: it is no error."""

    @cached_property
    def sizes(self) -> list[int]:
        """The elements of each piece."""
        return [piece.numel for piece in self.pieces]

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, at most: what a slab for it holds."""
        return self.wire.room(self.numel)

    @property
    def rounded(self) -> bool:
        """Whether what is sent differs from what is held."""
        return self.wire.dtype != self.dtype


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tell whether the elements fill one interval of memory without gap or overlap, in any order of the axes.

    >>> is_dense((2, 3), (3, 1)), is_dense((2, 3), (1, 2)), is_dense((2, 3), (6, 2)), is_dense((2, 3), (0, 1))
    (True, True, False, False)
    """
    if 0 in shape:
        return True
    expected = 1
    for stride, extent in sorted((s, e) for s, e in zip(strides, shape, strict=True) if e != 1):
        if stride != expected:
            return False
        expected *= extent
    return True


def plan_chunks(specs: Sequence[TensorSpec], wires: Sequence[WireFormat], chunk_bytes: int) -> tuple[Chunk, ...]:
    """Cut tensors into chunks of at most about ``chunk_bytes`` bytes.

    Every element of every tensor is in exactly one piece of one chunk.

    Args:
        specs: one per tensor.
        wires: the format in which each tensor travels.
        chunk_bytes: the largest chunk; a tensor that is not dense is never cut and may exceed it.
    """
    groups: dict[tuple[str, str, str, bool], list[int]] = {}
    for index, spec in enumerate(specs):
        if spec.numel:
            groups.setdefault((spec.device, spec.dtype, wires[index].dtype, spec.by_element), []).append(index)
    chunks: list[Chunk] = []
    for (device, dtype, _, by_element), members in groups.items():
        wire = wires[members[0]]
        in_place = [i for i in members if _sent_in_place(specs[i], wire, chunk_bytes)]
        packed = [i for i in members if i not in set(in_place)]
        most = max(1, chunk_bytes // wire.itemsize)
        for pieces, is_packed in [
            *(((piece,), False) for piece in _split(in_place, specs, most)),
            *((run, True) for run in _pack(packed, specs, most)),
        ]:
            numel = sum(piece.numel for piece in pieces)
            chunks.append(Chunk(len(chunks), pieces, numel, dtype, wire, device, is_packed, by_element))
    return tuple(chunks)


def assign_lanes(chunks: Sequence[Chunk], lanes: int) -> tuple[int, ...]:
    """Return, for every chunk, the lane that carries it: nearly as many bytes for each of ``lanes`` lanes.

    The largest chunk that is left goes to the lane that has least (Graham 1969).

    >>> from types import SimpleNamespace as Sized
    >>> assign_lanes([Sized(nbytes=n) for n in (5, 4, 3, 3, 3)], 2)
    (0, 1, 1, 0, 1)
    """
    owners = [0] * len(chunks)
    loads = [0] * lanes
    for index in sorted(range(len(chunks)), key=lambda index: -chunks[index].nbytes):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += chunks[index].nbytes
    return tuple(owners)


def layout_hash(specs: Sequence[TensorSpec], wires: Sequence[WireFormat], chunk_bytes: int) -> bytes:
    """Return 8 bytes that travel with every message, so that two ranks with different plans notice at once.

    A rank on the host may exchange with one on a GPU: which device it is does not count, only which tensors share one.
    """
    digest = hashlib.blake2b(digest_size=8)
    devices: dict[str, int] = {}
    for spec, wire in zip(specs, wires, strict=True):
        number = devices.setdefault(spec.device, len(devices))
        strides = spec.strides if spec.dense else None
        digest.update(repr((spec.shape, strides, spec.dtype, wire.dtype, number, spec.by_element)).encode())
    digest.update(str(chunk_bytes).encode())
    return digest.digest()


def _sent_in_place(spec: TensorSpec, wire: WireFormat, chunk_bytes: int) -> bool:
    # A message costs a few microseconds, a copy about 0.1 per KiB: below a quarter of a chunk packing is cheaper.
    return spec.dense and wire.dtype == spec.dtype and 4 * spec.numel * spec.itemsize >= chunk_bytes


def _split(members: Iterable[int], specs: Sequence[TensorSpec], most: int) -> Iterator[Piece]:
    for index in members:
        numel = specs[index].numel
        count = -(-numel // most)
        bounds = [numel * part // count for part in range(count + 1)]  # even pieces: no short last message
        yield from (Piece(index, start, stop) for start, stop in pairwise(bounds))


def _pack(members: Iterable[int], specs: Sequence[TensorSpec], most: int) -> Iterator[tuple[Piece, ...]]:
    run: list[Piece] = []
    room = most
    for index in members:
        numel = specs[index].numel
        start = 0
        while start < numel:
            if run and (room == 0 or (not specs[index].dense and room < numel)):
                yield tuple(run)
                run, room = [], most
            stop = min(numel, start + room) if specs[index].dense else numel
            run.append(Piece(index, start, stop))
            room = max(0, room - (stop - start))
            start = stop
    if run:
        yield tuple(run)
