"""The blocks of a chunk, so many at a time that they stay in the cache of a processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import modulo
from .chunked import Chunked
from .modulo import BLOCK, ROWS, Scratch
from .plan import Chunk, blocks_of
from .primitives import Array

__all__ = ["Tile", "Tiled", "cut_into_tiles"]


@dataclass(frozen=True, slots=True)
class Tile:
    """Blocks that are worked on at a time."""

    blocks: slice
    """Which blocks of the chunk."""

    parts: list[Array]
    """Their elements: flat views of one or several tensors."""

    sizes: list[int]
    """The lengths of the parts."""

    together: Array | None
    """The same as one view of shape (blocks, BLOCK), where they lie in one tensor: then nothing need be copied."""

    @property
    def rows(self) -> int:
        """How many blocks."""
        rows: int = self.blocks.stop - self.blocks.start
        return rows

    @property
    def elements(self) -> slice:
        """Which elements of the chunk."""
        start = self.blocks.start * BLOCK
        return slice(start, start + sum(self.sizes))


def cut_into_tiles(views: Sequence[Array], in_place: bool) -> list[Tile]:
    """Cut the elements of a chunk into tiles.

    Args:
        views: flat, in order; contiguous.
        in_place: whether they have the dtype in which one works.
    """
    left = [(view, 0) for view in reversed(views) if len(view)]
    blocks = blocks_of(sum(len(view) for view in views))
    tiles = []
    for first in range(0, blocks, ROWS):
        rows = min(ROWS, blocks - first)
        room, parts = rows * BLOCK, []
        while room and left:
            view, start = left.pop()
            parts.append(view[start : start + room])
            room -= len(parts[-1])
            if start + len(parts[-1]) < len(view):
                left.append((view, start + len(parts[-1])))
        together = parts[0].reshape(rows, BLOCK) if in_place and len(parts) == 1 and not room else None
        tiles.append(Tile(slice(first, first + rows), parts, [len(part) for part in parts], together))
    return tiles


class Tiled(Chunked):
    """Chunks that can be taken in tiles, in the work dtype: where they lie, or gathered one tile at a time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._tiles: dict[int, list[Tile]] = {}
        self._scratches: dict[tuple[str, str], Scratch] = {}
        self._flats: dict[tuple[str, str, str], Array] = {}
        super().__init__(*arguments, **options)

    def _rebuild(self) -> None:
        super()._rebuild()
        self._tiles.clear()
        self._flats.clear()

    def _own_tiles(self, chunk: Chunk) -> list[Tile]:
        """Return the tiles of this rank's z; where a tensor is not dense, of a copy of it."""
        if chunk.index in self._tiles:
            return self._tiles[chunk.index]
        views, work = self._views[chunk.index], self._work_dtype(chunk)
        if all(view.ndim == 1 for view in views):
            self._tiles[chunk.index] = cut_into_tiles(views, chunk.dtype == work)
            return self._tiles[chunk.index]
        flat = self._working(chunk, "mine")[: chunk.numel]
        self._gather_into(flat, chunk)
        return cut_into_tiles([flat], True)

    def _rows(self, tiles: Sequence[Tile], scratch: Scratch) -> Iterator[Array]:
        """Yield the elements of each tile, of shape (blocks, BLOCK), to be used before the next ones."""
        for tile in tiles:
            if tile.together is not None:
                yield tile.together
            else:
                own = scratch.own[: tile.rows]
                flat, count = own.reshape(-1), sum(tile.sizes)
                flat[count:] = 0
                self._join(flat[:count], tile.parts)
                yield own

    def _put_back(self, tile: Tile, own: Array) -> None:
        """Write back the elements of a tile, as :meth:`_rows` gave them, after a change."""
        if tile.together is None:
            self._copy(tile.parts, self._split(own.reshape(-1)[: sum(tile.sizes)], tile.sizes))

    def _put_all_back(self, chunk: Chunk) -> None:
        """Called once all tiles of a chunk are put back: where they were tiles of a copy, write that back."""
        if chunk.index not in self._tiles:
            self._scatter(chunk, self._working(chunk, "mine")[: chunk.numel])

    def _working(self, chunk: Chunk, what: str) -> Array:
        """Return an array as long as the blocks of a chunk, to work in; the same memory at every call."""
        numel, work = blocks_of(chunk.numel) * BLOCK, self._work_dtype(chunk)
        key = (what, work, chunk.device)
        if key not in self._flats or len(self._flats[key]) < numel:
            self._flats[key] = self._allocate(numel, work, chunk.device)
        return self._flats[key][:numel]

    def _scratch(self, chunk: Chunk) -> Scratch:
        work = self._work_dtype(chunk)
        key = (work, chunk.device)
        if key not in self._scratches:
            own, places, multiples, free = (
                self._allocate(ROWS * BLOCK, work, chunk.device).reshape(ROWS, BLOCK) for _ in range(4)
            )
            integers = self._view_as(self._allocate(4 * ROWS * BLOCK, "uint8", chunk.device), "int32")
            weights = self._widen(self._from_numpy(np.array(modulo.check_weights()), chunk.device), work)
            self._scratches[key] = Scratch(own, places, multiples, free, integers.reshape(ROWS, BLOCK), weights)
        return self._scratches[key]
