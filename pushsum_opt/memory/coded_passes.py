"""The passes in eight bits over the tiles of a chunk, each some ten operations of numpy or torch: see ``modulo.py``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import modulo
from .modulo import BLOCK, Scratch
from .plan import HEAD_BYTES, Chunk, blocks_of, coded_bytes
from .primitives import Array
from .tiles import Tile, Tiled
from .verdict import Outcome

__all__ = ["CodedPasses", "Decoded", "Parts"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a chunk that has come says."""

    values: Array
    """z_j, flat, in the work dtype. A block that came out wrong holds this rank's own; one that is not finite, nan."""
    finite: bool
    missed: int = 0
    """Blocks that came out wrong."""
    far: bool = False
    """One of them was so far from ours that bounds do not follow fast enough."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Views of the bytes of a coded chunk in eight bits, its last block filled up."""

    theta: Array
    sums: Array
    places: Array


class CodedPasses(Tiled):
    """Chunks in eight bits: to the wire, from it, and into this rank's own elements."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._bounds: dict[int, Array] = {}
        """By chunk, for each of its blocks: the largest difference that was seen lately."""
        super().__init__(*arguments, **options)

    def _encode_places(self, chunk: Chunk, data: Array, left: float, given: float) -> None:
        """Write a chunk to its bytes in eight bits; z, or its residual, keeps what rounding takes away."""
        xp, work, residual = self._xp, self._work_dtype(chunk), self._residual.get(chunk.index)
        scratch, parts, tiles = self._scratch(chunk), self._parts_of_bytes(chunk, data), self._own_tiles(chunk)
        peaks = self._joined([modulo.largest(xp, z, scratch) for z in self._rows(tiles, scratch)])
        self._cast(parts.theta, modulo.theta_of(xp, peaks, self._bounds[chunk.index]))
        theta = self._widen(parts.theta, work)  # to the last bit what the receiver takes
        bad = ~xp.isfinite(theta)
        some_bad = bool(bad.any())
        if some_bad:
            theta = xp.where(bad, 1.0, theta)
        step, inverse = modulo.steps_of(theta)
        sums = []
        for tile, own in zip(tiles, self._rows(tiles, scratch), strict=True):
            z = own
            if some_bad:  # a block that is not finite is sent as zeros, with a theta that tells of it
                z = self._copy_of(own)
                z[bad[tile.blocks]] = 0.0
            places, lost, found = modulo.encode(xp, z, step[tile.blocks], inverse[tile.blocks], scratch)
            sums.append(found)
            integers = scratch.integers[: tile.rows]
            self._cast(integers, places)
            self._cast(parts.places[tile.blocks], integers)  # which takes them modulo 256
            if residual is not None:
                mine = residual[tile.elements]
                modulo.add_times(xp, mine, lost.reshape(-1)[: len(mine)], given)
            elif given:
                modulo.add_times(xp, own, lost, given / left)
                self._put_back(tile, own)
        self._cast(parts.sums, self._joined(sums, 1))
        if residual is None and given:
            self._put_all_back(chunk)

    def _decode_places(self, chunk: Chunk, data: Array, learn: bool) -> Decoded:
        """Read the bytes of a chunk that came in eight bits, with the help of this rank's own values.

        Args:
            learn: it is about to be merged: let bounds follow from it.
        """
        xp, work, scratch, bounds = self._xp, self._work_dtype(chunk), self._scratch(chunk), self._bounds[chunk.index]
        parts, values, tiles = self._parts_of_bytes(chunk, data), self._working(chunk, "theirs"), self._own_tiles(chunk)
        rows, known = values.reshape(-1, BLOCK), xp.isfinite(parts.theta)
        if not known.all():
            self._keep_ours(tiles, scratch, rows, known)
            rows[~known] = np.nan
            return Decoded(values[: chunk.numel], finite=False)
        data[coded_bytes(chunk.numel) :] = 0  # the rest of the last block did not travel
        theta = self._widen(parts.theta, work)
        step, inverse = modulo.steps_of(theta)
        found = []
        for tile, mine in zip(tiles, self._rows(tiles, scratch), strict=True):
            places = rows[tile.blocks]
            self._cast(places, parts.places[tile.blocks])
            found.append(modulo.decode(xp, places, step[tile.blocks], inverse[tile.blocks], mine, scratch))
        seen = self._joined([largest for _, largest in found])
        sums = self._joined([sums for sums, _ in found], 1)
        right = (sums == self._widen(parts.sums, work)).all(0) & xp.isfinite(seen)
        missed, far = len(rows) - int(right.sum()), False
        if missed:
            far = bool((~right & modulo.are_far(bounds, theta)).any())
            self._keep_ours(tiles, scratch, rows, ~right)
        if learn:
            bounds[:] = modulo.bounds_after(xp, bounds, right, seen, theta)
        return Decoded(values[: chunk.numel], finite=True, missed=missed, far=far)

    def _merge_places(self, chunk: Chunk, data: Array, weight: float, mass: float) -> Outcome:
        """Fold in a chunk that came in eight bits."""
        decoded = self._decode_places(chunk, data, True)
        if decoded.finite:
            self._fold(chunk, decoded.values, weight, mass)
        return Outcome(decoded.finite, missed=decoded.missed, far=decoded.far)

    @abstractmethod
    def _fold(self, chunk: Chunk, theirs: Array, weight: float, mass: float) -> None:
        """Fold in values of a chunk, flat, in the work dtype."""

    def _keep_ours(self, tiles: list[Tile], scratch: Scratch, rows: Array, which: Array) -> None:
        """Write this rank's own elements over some blocks of what came."""
        for tile, mine in zip(tiles, self._rows(tiles, scratch), strict=True):
            kept = which[tile.blocks]
            rows[tile.blocks][kept] = mine[kept]

    def _parts_of_bytes(self, chunk: Chunk, data: Array) -> Parts:
        blocks = blocks_of(chunk.numel)
        sums, places = HEAD_BYTES + 4 * blocks, HEAD_BYTES + 12 * blocks
        return Parts(
            self._view_as(data[HEAD_BYTES:sums], "float32"),
            self._view_as(data[sums:places], "float32").reshape(2, blocks),
            data[places : places + blocks * BLOCK].reshape(blocks, BLOCK),
        )

    def _joined(self, parts: list[Array], axis: int = 0) -> Array:
        joined: Array = self._xp.concatenate(parts, axis)
        return joined

    def _copy_of(self, flat: Array) -> Array:
        return flat * 1.0
