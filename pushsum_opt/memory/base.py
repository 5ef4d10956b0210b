"""Where the parameters lie, and the arithmetic of push-sum on them.

:class:`Memory` is bound to the tensors of one rank and holds everything that is done to their elements. Subclasses give
it a handful of primitives for one kind of array; the mathematics stands here, once.

Symbols, as in the rest of the library: z the parameters (what the tensors hold), w the push weight, x = w z the implied
numerator. Where z is of half precision, merging in it would let the mean walk at random, so a float32 residual r is
kept with x = w z + r.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigurationError, LayoutError
from .plan import Chunk, Piece, TensorSpec, WireFormat, assign_lanes, layout_hash, plan_chunks

__all__ = ["Memory"]

Array = Any  # a torch tensor or a numpy array: one kind per memory
Values = npt.NDArray[np.float64]

SMALLEST_LANE_CHUNK = 1 << 16

HALF = ("float16", "bfloat16")
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


class Memory(ABC):
    """The tensors of one rank as a fixed list of chunks.

    Args:
        tensors: what is exchanged. They are changed in place, never re-bound, and never multiplied by w.
        names: one per tensor, for messages.
        wire_dtype: "bfloat16", "float16", "float32" or "float64": wider values are rounded to it on the wire, narrower
            ones travel as they are. None: everything travels as it is.
        chunk_bytes: see :func:`~pushsum_opt.memory.plan.plan_chunks`.
        lane: (l, L): this rank exchanges part l of L of the tensors. (0, 1): all of them.

    Raises:
        ConfigurationError: a tensor cannot be exchanged (not of a floating type, or its elements overlap in memory).
    """

    name: str
    """What kind of memory this is, for the start line."""

    late: bool = False
    """Whether buffers are handed out before they may be read or written; then each says when it is ready."""

    chunks: tuple[Chunk, ...]
    """All chunks: every element of every tensor is in one of them."""

    owners: tuple[int, ...]
    """The lane that exchanges each chunk."""

    layout: bytes
    """8 bytes that are equal on two ranks if and only if their messages fit each other."""

    def __init__(
        self,
        tensors: Sequence[Array],
        names: Sequence[str],
        wire_dtype: str | None,
        chunk_bytes: int,
        lane: tuple[int, int] = (0, 1),
    ) -> None:
        if wire_dtype is not None and wire_dtype not in WIDTH:
            raise ConfigurationError(f"wire_dtype={wire_dtype!r}: expected None or one of {', '.join(WIDTH)}")
        self._tensors = list(tensors)
        self._names = list(names)
        self._wire_dtype = wire_dtype
        self.chunk_bytes = chunk_bytes
        self._lane, self._lanes = lane
        self._places: list[object] = []
        self._residual: dict[int, Array] = {}
        self._before: dict[int, Array] = {}
        self._rebuild()

    # ------------------------------------------------------------------ the plan

    def refresh(self) -> None:
        """Notice that a tensor has moved or changed its strides since the last round, and plan anew.

        Raises:
            LayoutError: a tensor changed its shape or dtype.
        """
        if [self._place(tensor) for tensor in self._tensors] != self._places:
            self._rebuild()

    def extend(self, tensors: Sequence[Array], names: Sequence[str]) -> None:
        """Add tensors, behind the ones that are there."""
        added = [self._describe(tensor, name) for tensor, name in zip(tensors, names, strict=True)]
        self._tensors += tensors
        self._names += names
        self._specs = [*(self._specs or ()), *added]
        self._rebuild()

    _specs: list[TensorSpec] | None = None

    def _rebuild(self) -> None:
        specs = [self._describe(tensor, name) for tensor, name in zip(self._tensors, self._names, strict=True)]
        for name, old, new in zip(self._names, self._specs or specs, specs, strict=True):
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise LayoutError(
                    f"parameter {name} was {old.dtype}{list(old.shape)} at construction and is "
                    f"{new.dtype}{list(new.shape)} now. Shapes and dtypes are fixed once the optimizer is wrapped: "
                    "convert the model first, then make a new optimizer"
                )
        self._refuse_overlaps(specs)
        # Residuals belong to elements, not to chunks: carry them over to the new plan in tensor order.
        residuals = self._by_tensor(self._residual, "float32")
        for index, flat in residuals.items():
            residuals[index] = self._reorder(flat, (self._specs or specs)[index], specs[index])
        wires = [self._wire_format(spec) for spec in specs]
        self._specs = specs
        chunk_bytes = self._lane_chunk_bytes(specs)
        self.chunks = self._plan(specs, wires, chunk_bytes)
        self.owners = assign_lanes(self.chunks, self._lanes)
        self.layout = layout_hash(specs, wires, chunk_bytes)
        self._views = [[self._piece_view(self._tensors[p.tensor], p) for p in chunk.pieces] for chunk in self.chunks]
        self._wire_views = {
            chunk.index: self._wire_bytes(self._views[chunk.index][0]) for chunk in self.chunks if not chunk.packed
        }
        self._before.clear()
        self._residual.clear()
        for chunk in self.exchanged:
            if chunk.dtype in HALF:
                flat = self._allocate(chunk.numel, "float32", chunk.device)
                flat[:] = 0  # not flat * 0: new memory may hold nan
                for view, piece in zip(self._parts(flat, chunk), chunk.pieces, strict=True):
                    if piece.tensor in residuals:
                        self._copy([view], [residuals[piece.tensor][piece.start : piece.stop]])
                self._residual[chunk.index] = flat
        self._places = [self._place(tensor) for tensor in self._tensors]

    def _plan(self, specs: Sequence[TensorSpec], wires: Sequence[WireFormat], most: int) -> tuple[Chunk, ...]:
        return plan_chunks(specs, wires, most)

    def _lane_chunk_bytes(self, specs: Sequence[TensorSpec]) -> int:
        if self._lanes == 1:
            return self.chunk_bytes
        # Some chunks for every lane, or the lanes would differ much in their bytes.
        total = sum(spec.numel * spec.itemsize for spec in specs)
        return min(self.chunk_bytes, max(SMALLEST_LANE_CHUNK, total // (4 * self._lanes)))

    def _reorder(self, flat: Array, old: TensorSpec, new: TensorSpec) -> Array:
        """Return the elements of a flat array in the memory order of a tensor whose strides have changed."""
        if old.memory_order == new.memory_order:
            return flat
        there = flat.reshape([old.shape[axis] for axis in old.memory_order])
        back = [old.memory_order.index(axis) for axis in new.memory_order]
        return self._permute(there, back).reshape(-1)

    def _by_tensor(self, flats: Mapping[int, Array], dtype: str | None) -> dict[int, Array]:
        """Put flat arrays of chunks together by tensor: flat copies, in memory order.

        Args:
            flats: by chunk index; what belongs to other chunks is 0.
            dtype: what they hold; None: the wire dtype of each chunk.
        """
        specs = self._specs or []
        whole: dict[int, Array] = {}
        for chunk in self.chunks if flats else ():
            if chunk.index in flats:
                for view, piece in zip(self._parts(flats[chunk.index], chunk), chunk.pieces, strict=True):
                    if piece.tensor not in whole:
                        numel = specs[piece.tensor].numel
                        whole[piece.tensor] = self._allocate(numel, dtype or chunk.wire.dtype, chunk.device)
                        whole[piece.tensor][:] = 0
                    self._copy([whole[piece.tensor][piece.start : piece.stop]], [view])
        return whole

    def _shaped(self, whole: Mapping[int, Array]) -> dict[str, Array]:
        """Give flat tensors in memory order their shapes, by name."""
        specs = self._specs or []
        return {
            self._names[index]: self._reorder(flat, specs[index], _contiguous(specs[index])).reshape(specs[index].shape)
            for index, flat in whole.items()
        }

    def _flattened(self, shaped: Mapping[str, Array]) -> dict[int, Array]:
        """Return the opposite of :meth:`_shaped`."""
        specs = self._specs or []
        return {
            index: self._reorder(shaped[name].reshape(-1), _contiguous(specs[index]), specs[index])
            for index, name in enumerate(self._names)
            if name in shaped
        }

    def _wire_format(self, spec: TensorSpec) -> WireFormat:
        if self._wire_dtype is None or WIDTH[self._wire_dtype] >= spec.itemsize:
            return WireFormat(spec.dtype, spec.itemsize)
        return WireFormat(self._wire_dtype, WIDTH[self._wire_dtype])

    def _refuse_overlaps(self, specs: Sequence[TensorSpec]) -> None:
        spans = []
        for tensor, name, spec in zip(self._tensors, self._names, specs, strict=True):
            if spec.numel:
                reach = sum((extent - 1) * stride for extent, stride in zip(spec.shape, spec.strides, strict=True))
                if not spec.dense and reach + 1 < spec.numel:
                    raise ConfigurationError(
                        f"parameter {name} of shape {list(spec.shape)} has strides {list(spec.strides)}: several of "
                        "its elements share memory, so a merge would hit them several times. Pass a .contiguous() copy"
                    )
                start = self._address(tensor)
                spans.append((spec.device, start, start + (reach + 1) * spec.itemsize, name))
        spans.sort()
        for (device, _, stop, name), (other_device, start, _, other) in pairwise(spans):
            if device == other_device and start < stop:
                raise ConfigurationError(
                    f"parameters {name} and {other} overlap in memory without being the same tensor, so a merge would "
                    "hit the shared part twice. Exchange one of them, or the tensor that both are views of"
                )

    def described(self) -> dict[str, str]:
        """Return dtype, shape and strides of every tensor, by name: what ranks compare."""
        specs = zip(self._names, self._specs or [], strict=True)
        return {name: f"{spec.dtype}{list(spec.shape)} strides {list(spec.strides)}" for name, spec in specs}

    def describe(self, chunk: Chunk) -> str:
        """Name the tensors of a chunk, for messages."""
        names = [self._names[piece.tensor] for piece in chunk.pieces]
        return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"

    # ------------------------------------------------------------------ slabs and the wire

    @property
    def exchanged(self) -> tuple[Chunk, ...]:
        """The chunks that this rank exchanges: all of them, unless it is one lane of several."""
        if self._lanes == 1:
            return self.chunks
        return tuple(chunk for chunk in self.chunks if self.owners[chunk.index] == self._lane)

    @property
    def nbytes(self) -> int:
        """Bytes of one whole message, its header left out."""
        return sum(chunk.nbytes for chunk in self.exchanged)

    @property
    def largest(self) -> int:
        """Bytes of the largest chunk on the wire."""
        return max((chunk.nbytes for chunk in self.exchanged), default=0)

    @property
    def extra_bytes(self) -> int:
        """Bytes held beside the parameters, slabs left out: residuals, and the snapshot before a scaled step."""
        held = [*self._residual.values(), *self._before.values()]
        return sum(int(array.nbytes) for array in held)

    def new_slab(self, nbytes: int, device: str = "cpu") -> Array:
        """Allocate ``nbytes`` bytes to pack or receive into."""
        return self._allocate(nbytes, "uint8", device)

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
        sent = self._on_wire(chunk, slab)
        self._copy(self._cut(sent, chunk), self._views[chunk.index])
        if chunk.rounded and given:
            self.keep_rounding(chunk, slab, left, given)
        return self._wire_bytes(sent)

    def prepare_thread(self) -> None:  # noqa: B027  (only accelerators are chosen by thread)
        """Called by every thread that talks to the transport, before it first does."""

    def close(self) -> None:  # noqa: B027  (host memory goes with the last reference to it)
        """Give slabs back. Nothing is in flight any more, and no method is called afterwards."""

    # ------------------------------------------------------------------ the mathematics

    def keep_rounding(self, chunk: Chunk, slab: Array, weight: float, given: float) -> None:
        """Take back what rounding on the wire took away: z <- z + (M / w)(z - q), q = cast(z) as it was sent.

        With w the push weight after giving and M the mass given, w z + M q is what it was before, so the mean over
        ranks is exact. Called once after :meth:`pack` of the same chunk, with the same slab.
        """
        sent = self._widen(self._on_wire(chunk, slab), self._work_dtype(chunk))
        z = self._gather(chunk, self._work_dtype(chunk))
        if chunk.index in self._residual:
            self._residual[chunk.index] += given * (z - sent)
        else:
            self._scatter(chunk, z + (given / weight) * (z - sent))

    def merge(self, chunk: Chunk, slab: Array, weight: float, mass: float) -> None:
        """Fold a received chunk in: z <- z + (m / (w + m)) (z_j - z), one convex pass.

        Args:
            slab: what was received, as :meth:`new_slab` gave it.
            weight: w before this merge.
            mass: m, what the message carries.
        """
        theirs = self._on_wire(chunk, slab)
        if chunk.index in self._residual:
            wide = self._gather(chunk, "float32")
            theirs = self._widen(theirs, "float32")
            self._settle(chunk, weight * wide + self._residual[chunk.index] + mass * theirs, weight + mass)
        else:
            self._lerp(self._views[chunk.index], self._cut(theirs, chunk), mass / (weight + mass))

    def received_is_finite(self, chunk: Chunk, slab: Array) -> bool:
        """Tell whether a received chunk holds no inf and no nan."""
        return self._all_finite(self._on_wire(chunk, slab))

    def heal(self, chunk: Chunk, slab: Array) -> bool:
        """Copy a finite received chunk over the non-finite elements of ours; tell whether there were any."""
        if all(self._all_finite(view) for view in self._views[chunk.index]):
            return False
        mine = self._gather(chunk, self._work_dtype(chunk))
        theirs = self._widen(self._on_wire(chunk, slab), self._work_dtype(chunk))
        self._scatter(chunk, self._choose_finite(mine, theirs))
        if chunk.index in self._residual:
            residual = self._residual[chunk.index]
            nothing = self._allocate(chunk.numel, "float32", chunk.device)
            nothing[:] = 0
            self._copy([residual], [self._choose_finite(residual, nothing)])
        return True

    def snapshot(self) -> None:
        """Remember z, for :meth:`scale_step`."""
        for chunk in self.exchanged:
            before = self._before.get(chunk.index)
            if before is None:
                before = self._before[chunk.index] = self._allocate(chunk.numel, chunk.dtype, chunk.device)
            self._copy(self._cut(before, chunk), self._views[chunk.index])

    def scale_step(self, weight: float, data_weight: float) -> None:
        """Scale the local step since :meth:`snapshot`: z <- z_before + (a / w)(z_after - z_before).

        So x moves by a dz, as in the paper, where the update is applied to the numerator.
        """
        for chunk in self.exchanged:
            before = self._before[chunk.index]
            if chunk.index in self._residual:
                wide = self._widen(before, "float32")
                moved = self._gather(chunk, "float32") - wide
                self._settle(chunk, weight * wide + self._residual[chunk.index] + data_weight * moved, weight)
            else:
                self._lerp(self._views[chunk.index], self._cut(before, chunk), 1.0 - data_weight / weight)

    def _settle(self, chunk: Chunk, numerator: Array, weight: float) -> None:
        # z is the half-precision value nearest to x / w; what it misses stays in r, so nothing is lost.
        estimate = numerator / weight
        self._scatter(chunk, estimate)
        self._copy([self._residual[chunk.index]], [weight * (estimate - self._gather(chunk, "float32"))])

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

    def assign(self, chunk: Chunk, values: Values) -> None:
        """Set z of a chunk to float64 values, rounded to its dtype. Residuals stay."""
        self._scatter(chunk, self._from_numpy(values, chunk.device))

    def settle(self, chunk: Chunk, values: Values, weight: float) -> None:
        """Set z of a chunk to float64 values; what its dtype cannot hold stays in the residual, with x = w z + r."""
        wide = self._from_numpy(values, chunk.device)
        if chunk.index in self._residual:
            self._settle(chunk, weight * self._widen(wide, "float32"), weight)
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

    def message_state(self, slabs: Mapping[int, Array]) -> dict[str, Array]:
        """Return copies of what a message holds by tensor name: in its wire dtype, in its shape."""
        return self._shaped(self._by_tensor(self._wire_flats(slabs), None))

    def load_message_state(self, slabs: Mapping[int, Array], state: Mapping[str, Array]) -> None:
        """Fill slabs with what :meth:`message_state` returned."""
        self._fill(self._wire_flats(slabs), state)

    def _wire_flats(self, slabs: Mapping[int, Array]) -> dict[int, Array]:
        return {chunk.index: self._on_wire(chunk, slabs[chunk.index]) for chunk in self.exchanged}

    def _fill(self, flats: Mapping[int, Array], shaped: Mapping[str, Array]) -> None:
        whole = self._flattened(shaped)
        for chunk in self.chunks:
            if chunk.index in flats:
                for view, piece in zip(self._parts(flats[chunk.index], chunk), chunk.pieces, strict=True):
                    if piece.tensor in whole:
                        self._copy([view], [whole[piece.tensor][piece.start : piece.stop]])

    # ------------------------------------------------------------------ shared by the methods above

    def _work_dtype(self, chunk: Chunk) -> str:
        return "float32" if chunk.dtype in HALF else chunk.dtype

    def _cut(self, flat: Array, chunk: Chunk) -> list[Array]:
        """Cut a flat array of a chunk's length into views that match the chunk's pieces, shapes included."""
        if len(chunk.pieces) == 1 and self._views[chunk.index][0].ndim == 1:
            return [flat]
        return [
            part if own.ndim == 1 else part.reshape(own.shape)
            for part, own in zip(self._parts(flat, chunk), self._views[chunk.index], strict=True)
        ]

    def _parts(self, flat: Array, chunk: Chunk) -> Sequence[Array]:
        """Cut a flat array of a chunk's length into a flat view for each of its pieces."""
        return self._split(flat, [piece.numel for piece in chunk.pieces])

    def _gather(self, chunk: Chunk, dtype: str) -> Array:
        flat = self._allocate(chunk.numel, dtype, chunk.device)
        self._copy(self._cut(flat, chunk), self._views[chunk.index])
        return flat

    def _scatter(self, chunk: Chunk, flat: Array) -> None:
        self._copy(self._views[chunk.index], self._cut(flat, chunk))

    def _on_wire(self, chunk: Chunk, slab: Array) -> Array:
        return self._view_as(slab[: chunk.nbytes], chunk.wire.dtype)

    # ------------------------------------------------------------------ primitives of one kind of array

    @abstractmethod
    def _describe(self, tensor: Array, name: str) -> TensorSpec:
        """Return the spec of a tensor, or raise ConfigurationError where it cannot be exchanged."""

    @abstractmethod
    def _place(self, tensor: Array) -> object:
        """Return a value that changes when the tensor moves in memory or changes its strides; cheap."""

    @abstractmethod
    def _address(self, tensor: Array) -> int:
        """Return the address of the first element."""

    @abstractmethod
    def _piece_view(self, tensor: Array, piece: Piece) -> Array:
        """Return a piece of a dense tensor as a flat view; of any other tensor, the tensor itself."""

    @abstractmethod
    def _allocate(self, count: int, dtype: str, device: str) -> Array:
        """Return a flat array that is not initialised."""

    @abstractmethod
    def _split(self, flat: Array, sizes: list[int]) -> Sequence[Array]:
        """Cut a flat array into flat views of these lengths."""

    @abstractmethod
    def _permute(self, array: Array, axes: list[int]) -> Array:
        """Return a view with the axes in another order."""

    @abstractmethod
    def _wire_bytes(self, flat: Array) -> Any:
        """Return a flat array as the bytes that a transport takes, without a copy."""

    @abstractmethod
    def _view_as(self, flat_bytes: Array, dtype: str) -> Array:
        """Return bytes as a flat array of ``dtype``, without a copy."""

    @abstractmethod
    def _copy(self, destinations: Sequence[Array], sources: Sequence[Array]) -> None:
        """Copy each source into its destination, casting."""

    @abstractmethod
    def _lerp(self, destinations: Sequence[Array], others: Sequence[Array], fraction: float) -> None:
        """Move each destination by ``fraction`` of the way to the other, casting the other to its dtype."""

    @abstractmethod
    def _widen(self, array: Array, dtype: str) -> Array:
        """Return the array in another dtype; a copy only where that is needed."""

    @abstractmethod
    def _all_finite(self, array: Array) -> bool:
        """Tell whether no element is inf or nan."""

    @abstractmethod
    def _choose_finite(self, mine: Array, theirs: Array) -> Array:
        """Return mine where it is finite and theirs elsewhere."""

    @abstractmethod
    def _to_numpy(self, array: Array) -> Values:
        """Return a float64 array as a numpy array on the host that may be written to."""

    def _to_host(self, array: Array) -> Array:
        """Return a flat array on the host; a copy only where that is needed."""
        return array

    @abstractmethod
    def _from_bytes(self, data: npt.NDArray[np.uint8]) -> Array:
        """Return bytes on the host as an array of this kind, without a copy."""

    @abstractmethod
    def _from_numpy(self, values: Values, device: str) -> Array:
        """Return the opposite of :meth:`_to_numpy`."""


def _contiguous(spec: TensorSpec) -> TensorSpec:
    """Return a tensor of the same shape whose elements lie in the order of its axes."""
    strides = []
    stride = 1
    for extent in reversed(spec.shape):
        strides.append(stride)
        stride *= extent
    return replace(spec, strides=tuple(reversed(strides)))
