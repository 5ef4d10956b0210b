"""Where the parameters lie, and the arithmetic of push-sum on them.

:class:`Memory` is bound to the tensors of one rank and holds everything that is done to their elements. What one kind
of array must be able to do is in ``primitives.py``, how tensors are cut into chunks in ``planned.py``; the mathematics
stands here, once.

Symbols, as in the rest of the library: z the parameters (what the tensors hold), w the push weight, x = w z the implied
numerator. Where z is of half precision, merging in it would let the mean walk at random, so a float32 residual r is
kept with x = w z + r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from . import modulo
from .coded import Coded
from .plan import Chunk
from .planned import WIDTH
from .primitives import Array, Values
from .sums import Sums
from .verdict import Outcome, Verdict

__all__ = ["Memory"]


class Memory(Coded):
    """The tensors of one rank, cut into chunks, and everything that a round does to them.

    Made as :class:`~pushsum_opt.memory.planned.Planned` is.
    """

    name: str
    """What kind of memory this is, for the start line."""

    pending_buffers: bool = False
    """Whether what it hands out may be a :class:`~pushsum_opt.buffers.PendingBuffer`."""

    # ------------------------------------------------------------------ slabs and the wire

    @property
    def extra_bytes(self) -> int:
        """Bytes held beside the parameters, slabs left out: residuals, and the snapshot before a scaled step."""
        held = [*self._residual.values(), *self._before.values()]
        return sum(int(array.nbytes) for array in held) + self.coding_bytes

    def reserve(self) -> None:
        """Make what every round needs beside slabs, and would otherwise be made in the first one."""

    def new_slab(self, nbytes: int, device: str = "cpu", what: str = "a chunk of a message") -> Array:
        """Allocate ``nbytes`` bytes to pack or receive into.

        Args:
            what: what it is for, for the error where an accelerator has no memory.
        """
        return self._allocate(nbytes, "uint8", device)

    def new_slab_if_free(self, nbytes: int, device: str = "cpu") -> Array | None:
        """Allocate as :meth:`new_slab` does; None where an accelerator has no free memory for it."""
        return self.new_slab(nbytes, device)

    def wire_buffer(self, slab: Array, nbytes: int) -> Any:
        """Return the first ``nbytes`` bytes of a slab as what a transport takes."""
        return self._wire_bytes(slab[:nbytes])

    def in_place(self, chunk: Chunk) -> Any:
        """Return the bytes of a chunk that is not packed, where they lie."""
        return self._wire_views[chunk.index]

    def pack(self, chunk: Chunk, slab: Array, left: float = 1.0, given: float = 0.0) -> Any:
        """Gather a chunk into a slab, cast to its wire dtype, and return the bytes to send.

        Args:
            left: w after giving.
            given: M, the mass given with it. Above 0, what the cast takes away is kept: see :meth:`keep_rounding`.
        """
        if chunk.wire.coded:
            self._encode(chunk, slab[: chunk.nbytes], left, given)
            return self._wire_bytes(slab[: self._packed_bytes(chunk)])
        sent = self._on_wire(chunk, slab)
        self._gather_into(sent, chunk)
        if chunk.rounded and given:
            self.keep_rounding(chunk, slab, left, given)
        return self._wire_bytes(sent)

    def prepared_thread(self) -> AbstractContextManager[None]:
        """Return a context in which the caller's thread first talks to the transport; it ends as it was before."""
        return nullcontext()

    def prepare_worker(self) -> None:
        """Called by a thread of the library's own before it first talks to the transport."""

    def close(self) -> None:
        """Give slabs back. Nothing is in flight any more, and no method is called afterwards."""

    # ------------------------------------------------------------------ the mathematics

    def keep_rounding(self, chunk: Chunk, slab: Array, weight: float, given: float) -> None:
        """Take back what rounding on the wire took away: z <- z + (M / w)(z - q), q = cast(z) as it was sent.

        With w the push weight after giving and M the mass given, w z + M q is what it was before, so the mean over
        ranks is exact. Called once after :meth:`pack` of the same chunk, with the same slab.
        """
        if chunk.by_element:
            self._keep_rounding_by_element(chunk, slab, weight, given)
            return
        sent, residual = self._on_wire(chunk, slab), self._residual.get(chunk.index)
        scratch, tiles = self._scratch(chunk), self._own_tiles(chunk)
        for tile, own in zip(tiles, self._rows(tiles, scratch), strict=True):
            count = sum(tile.sizes)
            z, lost = own.reshape(-1)[:count], scratch.work.reshape(-1)[:count]
            self._cast(lost, sent[tile.elements])
            self._xp.subtract(z, lost, out=lost)
            if residual is not None:
                modulo.add_times(self._xp, residual[tile.elements], lost, given)
            else:
                modulo.add_times(self._xp, z, lost, given / weight)
                self._put_back(tile, own)
        if residual is None:
            self._put_all_back(chunk)

    def _keep_rounding_by_element(self, chunk: Chunk, slab: Array, weight: float, given: float) -> None:
        sent = self._widen(self._on_wire(chunk, slab), self._work_dtype(chunk))
        z = self._gather(chunk, self._work_dtype(chunk))
        lost = self._difference(chunk, z, sent)
        if chunk.index in self._residual:
            self._residual[chunk.index] += given * lost
        else:
            self._scatter(chunk, z + (given / weight) * lost)

    def merge_if_finite(self, chunk: Chunk, slab: Array, weight: float, mass: float, *, heal: bool = False) -> Verdict:
        """:meth:`merge` a received chunk unless it holds inf or nan: nothing is changed then.

        A chunk that is merged element by element always counts as finite.

        Args:
            heal: replace elements of ours that are not finite first, as :meth:`heal` does; of a chunk that is merged
                element by element those that are nan, for inf may be meant.

        Returns:
            what became of it; on an accelerator that is known later, and this call does not wait.
        """
        if chunk.by_element:
            self._merge_by_element(chunk, slab, weight, mass, heal)
            return Verdict(Outcome(finite=True))
        if chunk.wire.coded:
            return Verdict(self._merge_decoded(chunk, slab, weight, mass, heal))
        if not self.received_is_finite(chunk, slab):
            return Verdict(Outcome(finite=False))
        healed = heal and self.heal(chunk, slab)
        self.merge(chunk, slab, weight, mass)
        return Verdict(Outcome(finite=True, healed=healed))

    def merge(self, chunk: Chunk, slab: Array, weight: float, mass: float) -> None:
        """Fold a received chunk in: z <- z + (m / (w + m)) (z_j - z), one convex pass.

        Args:
            slab: what was received, as :meth:`new_slab` gave it.
            weight: w before this merge.
            mass: m, what the message carries.
        """
        if chunk.index in self._residual:
            self._fold(chunk, self._widen(self._on_wire(chunk, slab), "float32"), weight, mass)
        else:
            self._lerp(self._views[chunk.index], self._received_parts(chunk, slab), mass / (weight + mass))

    def _fold(self, chunk: Chunk, theirs: Array, weight: float, mass: float) -> None:
        """Fold in values of a chunk, flat, in the work dtype."""
        if chunk.index in self._residual:
            wide = self._gather(chunk, "float32")
            self._set_numerator(chunk, weight * wide + self._residual[chunk.index] + mass * theirs, weight + mass)
        else:
            self._lerp(self._views[chunk.index], self._cut(theirs, chunk), mass / (weight + mass))

    def _merge_by_element(self, chunk: Chunk, slab: Array, weight: float, mass: float, heal: bool) -> None:
        """Merge where both elements are finite, and keep ours elsewhere. Nothing is asked of the values: no wait."""
        work = self._work_dtype(chunk)
        mine = self._gather(chunk, work)
        theirs = self._choose_finite(self._widen(self._on_wire(chunk, slab), work), mine)
        if heal:
            mine = self._choose_number(mine, theirs)
        if chunk.index in self._residual:
            self._set_numerator(chunk, weight * mine + self._residual[chunk.index] + mass * theirs, weight + mass)
        else:
            merged = self._allocate(chunk.numel, work, chunk.device)
            self._copy([merged], [mine])
            self._lerp([merged], [theirs], mass / (weight + mass))
            self._scatter(chunk, self._choose_finite(merged, mine))

    def received_is_finite(self, chunk: Chunk, slab: Array) -> bool:
        """Tell whether a received chunk holds no inf and no nan."""
        return self._all_finite(self._on_wire(chunk, slab))

    def heal(self, chunk: Chunk, slab: Array) -> bool:
        """Copy a finite received chunk over the non-finite elements of ours; tell whether there were any."""
        return self._heal_from(chunk, self._widen(self._on_wire(chunk, slab), self._work_dtype(chunk)))

    def _heal_from(self, chunk: Chunk, theirs: Array) -> bool:
        if all(self._all_finite(view) for view in self._views[chunk.index]):
            return False
        mine = self._gather(chunk, self._work_dtype(chunk))
        self._scatter(chunk, self._choose_finite(mine, theirs))
        if chunk.index in self._residual:
            residual = self._residual[chunk.index]
            self._copy([residual], [self._finite_or_zero(chunk, residual, "float32")])
        return True

    def snapshot(self) -> None:
        """Remember z, for :meth:`scale_step`."""
        for chunk in self._stepped:
            before = self._before.get(chunk.index)
            if before is None:
                before = self._before[chunk.index] = self._allocate(chunk.numel, chunk.dtype, chunk.device)
            self._gather_into(before, chunk)

    def scale_step(self, weight: float, initial_weight: float) -> None:
        """Scale the local step since :meth:`snapshot`: z <- z_before + (a / w)(z_after - z_before).

        So x moves by a dz, as in the paper, where the update is applied to the numerator. What is merged element by
        element is not stepped: a forward moves it, mostly outside of the step.
        """
        for chunk in self._stepped:
            before = self._before[chunk.index]
            if chunk.index in self._residual:
                wide = self._widen(before, "float32")
                moved = self._gather(chunk, "float32") - wide
                self._set_numerator(chunk, weight * wide + self._residual[chunk.index] + initial_weight * moved, weight)
            else:
                self._lerp(self._views[chunk.index], self._cut(before, chunk), 1.0 - initial_weight / weight)

    @property
    def _stepped(self) -> list[Chunk]:
        return [chunk for chunk in self.exchanged if not chunk.by_element]

    def _set_numerator(self, chunk: Chunk, numerator: Array, weight: float) -> None:
        # z is the half-precision value nearest to x / w; what it misses stays in r, so nothing is lost.
        estimate = numerator / weight
        self._scatter(chunk, estimate)
        missed = self._difference(chunk, estimate, self._gather(chunk, "float32"))
        self._copy([self._residual[chunk.index]], [weight * missed])

    # ------------------------------------------------------------------ whole-model values, in float64

    def numerator(self, chunk: Chunk, weight: float) -> Values:
        """Return x = w z (+ r) of a chunk: float64, shape (chunk.numel,), on the host."""
        values = self._to_numpy(self._gather(chunk, "float64")) * weight
        if chunk.index in self._residual:
            values += self._to_numpy(self._widen(self._residual[chunk.index], "float64"))
        return values

    def values(self, chunk: Chunk) -> Values:
        """Return z of a chunk: float64, shape (chunk.numel,), on the host."""
        return self._to_numpy(self._gather(chunk, "float64"))

    def received_values(self, chunk: Chunk, slab: Array) -> Values:
        """Return z_j of a received chunk: float64, shape (chunk.numel,), on the host."""
        return self._to_numpy(self._widen(self._on_wire(chunk, slab), "float64"))

    def some_values(self, chunk: Chunk, piece: int, elements: slice) -> Values:
        """Return some elements of z of one piece of a chunk: float64, flat, on the host."""
        return self._to_numpy(self._widen(self._views[chunk.index][piece].reshape(-1)[elements], "float64"))

    def begin_sums(self, places: Sequence[tuple[Chunk, int, slice]], signs: Values) -> Sums:
        """Begin to sum up some elements of z, as z is now: the product of ``signs`` and these elements, in float64.

        Args:
            places: which elements of which piece of which chunk, each as for :meth:`some_values`.
            signs: what each of them is multiplied by: float64, shape (sums, elements of all places together). Pass the
                same array each time: an accelerator keeps a copy of it.

        Returns:
            what gives the sums; on an accelerator they are known later, and this call does not wait. It sums up one
            model at a time: what nobody has asked for by then is given up.
        """
        sample = np.concatenate([self.some_values(*place) for place in places])
        with np.errstate(invalid="ignore", over="ignore"):
            return Sums(signs @ sample)

    def assign(self, chunk: Chunk, values: Values) -> None:
        """Set z of a chunk to float64 values, rounded to its dtype. Residuals stay."""
        self._scatter(chunk, self._from_numpy(values, chunk.device))

    def set_mean(self, chunk: Chunk, values: Values, weight: float) -> None:
        """Set z of a chunk to float64 values; what its dtype cannot hold stays in the residual, with x = w z + r."""
        wide = self._from_numpy(values, chunk.device)
        if chunk.index in self._residual:
            self._set_numerator(chunk, weight * self._widen(wide, "float32"), weight)
        else:
            self._scatter(chunk, wide)

    def raw(self, chunk: Chunk) -> Any:
        """Return the bytes of z of a chunk as a new buffer, in its own dtype."""
        flat = self._allocate(chunk.numel, chunk.dtype, chunk.device)
        self._copy(self._cut(flat, chunk), self._views[chunk.index])
        return flat

    def put_raw(self, chunk: Chunk, flat: Any) -> None:
        """Write back what :meth:`raw` returned, bit for bit."""
        self._copy(self._views[chunk.index], self._cut(flat, chunk))

    def raw_bytes(self, flat: Any) -> Any:
        """Return what :meth:`raw` returned as what a transport takes."""
        return self._wire_bytes(flat)

    def held_bytes(self, chunk: Chunk) -> int:
        """Return how many bytes a chunk takes in its own dtype."""
        return chunk.numel * WIDTH[chunk.dtype]

    def host_bytes(self, chunk: Chunk) -> Any:
        """Return z of a chunk as bytes on the host, in its own dtype: where they lie or as a copy."""
        if not chunk.packed:
            return self._wire_views[chunk.index]
        return self._wire_bytes(self._to_host(self.raw(chunk)))

    def put_host_bytes(self, chunk: Chunk, data: npt.NDArray[np.uint8]) -> None:
        """Write what :meth:`host_bytes` returned into z of a chunk, bit for bit."""
        self.put_raw(chunk, self._view_as(self._from_bytes(data), chunk.dtype))

    def sample(self, chunk: Chunk, count: int) -> Any:
        """Return up to ``count`` elements from the beginning and the end of every piece of a chunk, as a buffer."""
        ends = []
        for view in self._views[chunk.index]:
            flat = view.reshape(-1)
            ends += [flat] if len(flat) <= 2 * count else [flat[:count], flat[-count:]]
        sizes = [len(end) for end in ends]
        taken = self._allocate(sum(sizes), chunk.dtype, chunk.device)
        self._copy(self._split(taken, sizes), ends)
        return self._wire_bytes(taken)

    # ------------------------------------------------------------------ by tensor, for files

    @property
    def tensors(self) -> dict[str, Array]:
        """What is exchanged, by name."""
        return dict(zip(self._names, self._tensors, strict=True))

    def residual_state(self) -> dict[str, Array]:
        """Return copies of the residuals by tensor name: float32, in its shape. Empty without half types.

        A complex tensor has the shape of its real view, here and below, with a last axis of 2.
        """
        return self._shaped(self._by_tensor(self._residual, "float32"))

    def load_residual_state(self, state: Mapping[str, Array]) -> None:
        """Set the residuals; tensors that ``state`` does not name get none."""
        for flat in self._residual.values():
            flat[:] = 0
        self._fill(self._residual, state)

    def scale_residuals(self, factor: float) -> None:
        """Multiply the residuals, as when every rank's w is multiplied: x = w z + r changes by the same factor."""
        for flat in self._residual.values():
            flat *= factor

    def message_state(self, slabs: Mapping[int, Array]) -> dict[str, Array]:
        """Return copies of what a message holds by tensor name, in its shape: in its wire dtype; what travelled in
        eight bits, in the work dtype; and what it says beside."""
        return self._shaped(self._by_tensor(self._wire_flats(slabs), None)) | self._asides(slabs)

    def load_message_state(self, slabs: Mapping[int, Array], state: Mapping[str, Array]) -> None:
        """Fill slabs with what :meth:`message_state` returned."""
        flats = {c.index: self._to_fill(c, self._slab_bytes(c, slabs[c.index])) for c in self.exchanged}
        self._fill(flats, state)
        for chunk in self.exchanged:
            self._code_again(chunk, self._slab_bytes(chunk, slabs[chunk.index]), state)

    def _wire_flats(self, slabs: Mapping[int, Array]) -> dict[int, Array]:
        return {chunk.index: self._on_wire(chunk, slabs[chunk.index]) for chunk in self.exchanged}

    def _fill(self, flats: Mapping[int, Array], shaped: Mapping[str, Array]) -> None:
        whole = self._flattened(shaped)
        for chunk in self.chunks:
            if chunk.index in flats:
                for view, piece in zip(self._parts(flats[chunk.index], chunk), chunk.pieces, strict=True):
                    if piece.tensor in whole:
                        self._copy([view], [whole[piece.tensor][piece.start : piece.stop]])
