"""The passes in eight bits over the tiles of a chunk, compiled: in host memory, where numba is installed.

That is the extra ``int8``. Bits are those that torch gives, so ranks that have it go with ranks that have not.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..log import log
from .coded_passes import CodedPasses, Decoded
from .plan import Chunk
from .primitives import Array
from .verdict import Outcome

if TYPE_CHECKING:
    from .compiled import Compiled

__all__ = ["CompiledPasses", "compiled_for"]

OnHost = npt.NDArray[Any]
Table = tuple[OnHost, OnHost]

NO_RESIDUAL = np.empty(0, np.float32)


_lock = threading.Lock()


def compiled_for(work: str) -> Compiled | None:
    """Return the passes for a work dtype, float32 or float64; None where numba cannot be used."""
    with _lock:  # ranks that are threads of a process compile once
        return _compiled_once(work)


@functools.cache
def _compiled_once(work: str) -> Compiled | None:
    try:
        import numba

        from .compiled import compile_passes

        config: Any = numba.config
        return None if config.DISABLE_JIT else compile_passes(work)
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
    except Exception as error:  # it does not go with this numpy or this Python, and says so in many ways
        log.warning("numba cannot be used: %s: %s", type(error).__name__, error)
    return None


class CompiledPasses(CodedPasses):
    """The same passes, with the same bits, where they can be compiled: one call for a chunk, however many tensors."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runs: dict[int, Table] = {}
        super().__init__(*arguments, **options)

    def _rebuild(self) -> None:
        self._runs.clear()
        super()._rebuild()

    def prepare_passes(self) -> None:
        """Compile what messages will need, which takes a second or two, before a round waits for it."""
        for chunk in self.exchanged:
            if chunk.wire.coded:
                self._compiled(chunk)

    @property
    def lacks_numba(self) -> bool:
        """Whether messages in eight bits begin or end in host memory, and numba is missing."""
        coded = (chunk for chunk in self.exchanged if chunk.wire.coded and chunk.device == "cpu")
        return any(self._compiled(chunk) is None for chunk in coded)

    def _compiled(self, chunk: Chunk) -> Compiled | None:
        """Return the passes for a chunk; None: numba is missing, or the chunk is not in host memory."""
        return compiled_for(self._work_dtype(chunk)) if chunk.device == "cpu" else None

    def _encode_places(self, chunk: Chunk, data: Array, left: float, given: float) -> None:
        compiled, residual = self._compiled(chunk), self._residual.get(chunk.index)
        if compiled is None:
            super()._encode_places(chunk, data, left, given)
        elif residual is None:
            with self._table(chunk, changed=given > 0) as table:
                compiled.encode(*table, NO_RESIDUAL, False, given / left, *self._arrays(chunk, data))
        else:
            with self._table(chunk, changed=False) as table:
                compiled.encode(*table, self._to_numpy(residual), True, given, *self._arrays(chunk, data))

    def _decode_places(self, chunk: Chunk, data: Array, learn: bool) -> Decoded:
        compiled = self._compiled(chunk)
        if compiled is None or not self._all_finite(self._parts_of_bytes(chunk, data).theta):
            return super()._decode_places(chunk, data, learn)
        values = self._working(chunk, "theirs")[: chunk.numel]
        self._gather_into(values, chunk)  # ours, which then move all the way
        bounds, *coded = self._arrays(chunk, data)
        table = self._table_of([values])
        missed, far = compiled.merge(*table, 1.0, bounds if learn else bounds.copy(), *coded)
        return Decoded(values, finite=True, missed=missed, far=far)

    def _merge_places(self, chunk: Chunk, data: Array, weight: float, mass: float) -> Outcome:
        compiled = self._compiled(chunk)
        if compiled is None or chunk.index in self._residual:
            return super()._merge_places(chunk, data, weight, mass)
        if not self._all_finite(self._parts_of_bytes(chunk, data).theta):
            return Outcome(finite=False)
        with self._table(chunk, changed=True) as table:
            missed, far = compiled.merge(*table, mass / (weight + mass), *self._arrays(chunk, data))
        return Outcome(finite=True, missed=missed, far=far)

    def _arrays(self, chunk: Chunk, data: Array) -> tuple[OnHost, ...]:
        """Return the bounds of a chunk; and its thetas, both check sums and its places, where they lie in its bytes."""
        parts = self._parts_of_bytes(chunk, data)
        first, second = self._to_numpy(parts.sums)
        places = self._to_numpy(parts.places).reshape(-1)[: chunk.numel]
        return self._to_numpy(self._bounds[chunk.index]), self._to_numpy(parts.theta), first, second, places

    @contextmanager
    def _table(self, chunk: Chunk, *, changed: bool) -> Iterator[Table]:
        """Give the table of z of a chunk, or of a copy in the work dtype, which is then written back if changed."""
        table = self._table_where_it_lies(chunk)
        if table is not None:
            yield table
            if changed:
                self._count_writes(self._views[chunk.index])
            return
        copy = self._working(chunk, "mine")[: chunk.numel]
        self._gather_into(copy, chunk)
        yield self._table_of([copy])
        if changed:
            self._scatter(chunk, copy)

    def _table_where_it_lies(self, chunk: Chunk) -> Table | None:
        """Return the table of z; None where z is of another dtype, is not dense, or begins between two addresses."""
        views, work, specs = self._views[chunk.index], self._work_dtype(chunk), self._specs or ()
        if chunk.dtype != work or not all(specs[piece.tensor].dense for piece in chunk.pieces):
            return None
        table = self._runs.get(chunk.index)
        if table is None or not self._lie_at(views, table[0]):
            table = self._runs[chunk.index] = self._table_of(views)
        return None if (table[0] % np.dtype(work).itemsize).any() else table

    def _table_of(self, flats: Sequence[Array]) -> Table:
        addresses = np.array([self._address(flat) for flat in flats], np.int64)
        return addresses, np.array([len(flat) for flat in flats], np.int64)
