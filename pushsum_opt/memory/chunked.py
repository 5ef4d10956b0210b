"""A chunk as one flat array: gathered from its tensors, scattered over them, and what rounding takes away of it."""

from __future__ import annotations

import numpy as np

from .plan import Chunk
from .planned import Planned, work_dtype
from .primitives import Array

__all__ = ["Chunked"]


class Chunked(Planned):
    """Planned tensors whose chunks can be taken as flat arrays."""

    def _work_dtype(self, chunk: Chunk) -> str:
        return work_dtype(chunk.dtype)

    def _cut(self, flat: Array, chunk: Chunk) -> list[Array]:
        """Cut a flat array of a chunk's length into views that match the chunk's pieces, shapes included."""
        if len(chunk.pieces) == 1 and self._views[chunk.index][0].ndim == 1:
            return [flat]
        return [
            part if own.ndim == 1 else part.reshape(own.shape)
            for part, own in zip(self._parts(flat, chunk), self._views[chunk.index], strict=True)
        ]

    def _difference(self, chunk: Chunk, exact: Array, rounded: Array) -> Array:
        """Return what rounding took away, in the work dtype; merged element by element, 0 where one is inf or nan."""
        if not chunk.by_element:
            return exact - rounded
        with np.errstate(invalid="ignore"):  # inf - inf
            return self._finite_or_zero(chunk, exact - rounded, self._work_dtype(chunk))

    def _finite_or_zero(self, chunk: Chunk, flat: Array, dtype: str) -> Array:
        nothing = self._allocate(chunk.numel, dtype, chunk.device)
        nothing[:] = 0
        return self._choose_finite(flat, nothing)

    def _gather(self, chunk: Chunk, dtype: str) -> Array:
        flat = self._allocate(chunk.numel, dtype, chunk.device)
        self._gather_into(flat, chunk)
        return flat

    def _gather_into(self, flat: Array, chunk: Chunk) -> None:
        self._copy(self._cut(flat, chunk), self._views[chunk.index])

    def _scatter(self, chunk: Chunk, flat: Array) -> None:
        self._copy(self._views[chunk.index], self._cut(flat, chunk))

    def _received_parts(self, chunk: Chunk, slab: Array) -> list[Array]:
        """Return what has come into a slab, in views that match the chunk's pieces."""
        return self._cut(self._on_wire(chunk, slab), chunk)

    def _slab_bytes(self, chunk: Chunk, slab: Array) -> Array:
        """Return the bytes of a chunk in a slab: where they lie, or as a copy."""
        return slab[: chunk.nbytes]

    def _on_wire(self, chunk: Chunk, slab: Array) -> Array:
        """Return the values of a chunk in a slab."""
        return self._view_as(self._slab_bytes(chunk, slab), chunk.wire.dtype)
