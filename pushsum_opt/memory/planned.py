"""The tensors of one rank, cut into chunks; cut anew when they move, and residuals move along."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ..errors import ConfigurationError, LayoutError
from .plan import CODED, Chunk, TensorSpec, WireFormat, assign_lanes, layout_hash, plan_chunks
from .primitives import Array, Primitives, Values

__all__ = ["HALF", "WIDTH", "Planned", "work_dtype"]

SMALLEST_LANE_CHUNK = 1 << 16

HALF = ("float16", "bfloat16")
WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
WIRES = (*WIDTH, CODED)


class Planned(Primitives):
    """Tensors, cut into chunks. A plan is one way to cut them; residuals of half-precision elements move to the next.

    Args:
        tensors: what is exchanged. They are changed in place, never re-bound, and never multiplied by w.
        names: one per tensor, for messages.
        wire_dtype: "bfloat16", "float16", "float32" or "float64": wider values are rounded to it on the wire, narrower
            ones travel as they are. "int8": in eight bits, see :mod:`.coded`; what is merged element by element
            travels as it is. None: everything travels as it is.
        chunk_bytes: see :func:`~pushsum_opt.memory.plan.plan_chunks`.
        lane: (l, L): this rank exchanges part l of L of the tensors. (0, 1): all of them.
        by_element: names of tensors that are merged element by element, as buffers are: an element that is inf or nan,
            here or there, stays what it is here.

    Raises:
        ConfigurationError: a tensor cannot be exchanged (not of a floating type, or its elements overlap in memory).
    """

    chunks: tuple[Chunk, ...]
    """All chunks: every element of every tensor is in one of them."""

    owners: tuple[int, ...]
    """The lane that exchanges each chunk."""

    layout_digest: bytes
    """8 bytes, a hash of all shapes, strides, dtypes and the plan: equal on two ranks whose messages fit each other."""

    whose: str = ""
    """Stands in front of errors: the rank that these tensors belong to."""

    def __init__(
        self,
        tensors: Sequence[Array],
        names: Sequence[str],
        wire_dtype: str | None,
        chunk_bytes: int,
        lane: tuple[int, int] = (0, 1),
        *,
        by_element: Collection[str] = (),
    ) -> None:
        if wire_dtype is not None and wire_dtype not in WIRES:
            raise ConfigurationError(f"wire_dtype={wire_dtype!r}: expected None or one of {', '.join(WIRES)}")
        self._tensors = list(tensors)
        self._names = list(names)
        self._wire_dtype = wire_dtype
        self.chunk_bytes = chunk_bytes
        self._lane, self._lanes = lane
        self._by_element = set(by_element)
        self._positions: list[object] = []
        self._residual: dict[int, Array] = {}
        self._before: dict[int, Array] = {}
        self._rebuild()

    # ------------------------------------------------------------------ the plan

    def refresh(self) -> None:
        """Plan anew if a tensor has moved, or has other strides, since the last round.

        Raises:
            LayoutError: a tensor changed its shape or dtype.
        """
        if self._surely_unmoved():
            return
        if self._all_positions() != self._positions:
            self._rebuild()
        else:
            self._make_proof()

    def _surely_unmoved(self) -> bool:
        """Tell whether there is a quick proof that no tensor has moved since the plan was made."""
        return False

    def _make_proof(self) -> None:
        """Prepare the quick proof: tensors lie as they did when the plan was made."""

    def keeps_its_form(self) -> bool:
        """Tell whether every tensor still has the shape, dtype, device and strides of the plan, wherever it lies."""
        try:
            specs = self._describe_all()
        except ConfigurationError:
            return False
        return specs == self._specs

    def extend(self, tensors: Sequence[Array], names: Sequence[str], by_element: Collection[str] = ()) -> None:
        """Add tensors, behind the ones that are there."""
        added = [self._spec(tensor, name, name in by_element) for tensor, name in zip(tensors, names, strict=True)]
        self._tensors += tensors
        self._names += names
        self._by_element |= set(by_element)
        self._specs = [*(self._specs or ()), *added]
        self._rebuild()

    def take_away(self, names: Collection[str]) -> None:
        """Exchange the others only, as before :meth:`extend`, which has added these last."""
        count = len(self._names) - len(names)
        del self._tensors[count:], self._names[count:]
        self._by_element -= set(names)
        self._rebuild()

    def leave_out(self, names: Collection[str]) -> None:
        """Exchange the others only. Before the first round."""
        kept = [index for index, name in enumerate(self._names) if name not in names]
        if len(kept) < len(self._names):
            self._tensors = [self._tensors[index] for index in kept]
            self._names = [self._names[index] for index in kept]
            self._specs = None
            self._residual.clear()
            self._rebuild()

    def replace(self, name: str, tensor: Array) -> None:
        """Exchange another tensor under a name, of the same shape and dtype, from the next :meth:`refresh` on."""
        self._tensors[self._names.index(name)] = tensor

    _specs: list[TensorSpec] | None = None

    def _describe_all(self) -> list[TensorSpec]:
        named = zip(self._tensors, self._names, strict=True)
        return [self._spec(tensor, name, name in self._by_element) for tensor, name in named]

    def _spec(self, tensor: Array, name: str, by_element: bool) -> TensorSpec:
        spec = self._describe(tensor, name)
        return replace(spec, by_element=True) if by_element else spec

    def _rebuild(self) -> None:
        specs = self._describe_all()
        for name, old, new in zip(self._names, (self._specs or specs)[: len(specs)], specs, strict=True):
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise LayoutError(
                    f"{self.whose}parameter {name} was {old.dtype}{list(old.shape)} at construction and is "
                    f"{new.dtype}{list(new.shape)} now. Shapes and dtypes are fixed once the optimizer is wrapped: "
                    "convert the model first, then make a new optimizer"
                )
        self._refuse_overlaps(specs)
        residuals = self._residuals_by_tensor(specs)
        wires = [self._wire_format(spec) for spec in specs]
        self._specs = specs
        chunk_bytes = self._lane_chunk_bytes(specs)
        self.chunks = self._plan(specs, wires, chunk_bytes)
        self.owners = assign_lanes(self.chunks, self._lanes)
        self.layout_digest = layout_hash(specs, wires, chunk_bytes)
        self._views = [[self._piece_view(self._tensors[p.tensor], p) for p in chunk.pieces] for chunk in self.chunks]
        self._wire_views = {
            chunk.index: self._wire_bytes(self._views[chunk.index][0]) for chunk in self.chunks if not chunk.packed
        }
        self._before.clear()
        self._residual.clear()
        for chunk in self.exchanged:
            if chunk.dtype in HALF:
                self._residual[chunk.index] = self._cut_residual(chunk, residuals)
        self._positions = self._all_positions()
        self._make_proof()

    def _all_positions(self) -> list[object]:
        """Return where each tensor lies and in which form, to see whether one has moved; in every round."""
        return [self._position(tensor) for tensor in self._tensors]

    def _residuals_by_tensor(self, specs: Sequence[TensorSpec]) -> dict[int, Array]:
        """Return the residuals of each tensor, in the memory order of its new description.

        Residuals belong to elements, not to chunks: so they are carried from one plan to the next by tensor.
        """
        return {
            index: self._reorder(flat, (self._specs or specs)[index], specs[index])
            for index, flat in self._by_tensor(self._residual, "float32").items()
            if index < len(specs)
        }

    def _cut_residual(self, chunk: Chunk, residuals: Mapping[int, Array]) -> Array:
        """Return the residuals of a chunk; 0 where there are none."""
        flat = self._allocate(chunk.numel, "float32", chunk.device)
        flat[:] = 0  # not flat * 0: new memory may hold nan
        for view, piece in zip(self._parts(flat, chunk), chunk.pieces, strict=True):
            if piece.tensor in residuals:
                self._copy([view], [residuals[piece.tensor][piece.start : piece.stop]])
        return flat

    def _plan(self, specs: Sequence[TensorSpec], wires: Sequence[WireFormat], most: int) -> tuple[Chunk, ...]:
        return plan_chunks(specs, wires, most)

    def _lane_chunk_bytes(self, specs: Sequence[TensorSpec]) -> int:
        if self._lanes == 1:
            return self.chunk_bytes
        # Several chunks for every lane: otherwise the lanes would carry very different numbers of bytes.
        total = sum(spec.numel * spec.itemsize for spec in specs)
        return min(self.chunk_bytes, max(SMALLEST_LANE_CHUNK, total // (4 * self._lanes)))

    def _wire_format(self, spec: TensorSpec) -> WireFormat:
        if self._wire_dtype == CODED and not spec.by_element:
            return WireFormat(CODED, WIDTH[work_dtype(spec.dtype)])
        if self._wire_dtype in (None, CODED) or WIDTH[self._wire_dtype] >= spec.itemsize:
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

    def spans(self, chunk: Chunk, ids: frozenset[int]) -> list[slice]:
        """Return which parts of the values of a chunk belong to some tensors, given by their identities."""
        found, start = [], 0
        for piece in chunk.pieces:
            if id(self._tensors[piece.tensor]) in ids:
                found.append(slice(start, start + piece.numel))
            start += piece.numel
        return found

    def name_nonfinite(self, chunk: Chunk, values: Values) -> str:
        """Name the tensors of a chunk that hold inf or nan, for messages.

        Args:
            values: of shape (chunk.numel,), on the host.
        """
        ends = np.cumsum([piece.numel for piece in chunk.pieces])[:-1]
        parts = zip(chunk.pieces, np.split(values, ends), strict=True)
        names = [self._names[piece.tensor] for piece, part in parts if not np.isfinite(part).all()]
        return f"{', '.join(names[:3])}, ... ({len(names)} in all)" if len(names) > 3 else ", ".join(names)

    # ------------------------------------------------------------------ what travels

    @property
    def exchanged(self) -> tuple[Chunk, ...]:
        """The chunks that this rank exchanges: all of them, unless it is one lane of several."""
        if self._lanes == 1:
            return self.chunks
        return tuple(chunk for chunk in self.chunks if self.owners[chunk.index] == self._lane)

    @property
    def nbytes(self) -> int:
        """Bytes of one message in most rounds, its header left out."""
        return sum(chunk.wire.usual(chunk.numel) for chunk in self.exchanged)

    @property
    def slab_bytes(self) -> int:
        """Bytes of the slabs that hold one message."""
        return sum(chunk.nbytes for chunk in self.exchanged)

    @property
    def largest(self) -> int:
        """Bytes of the largest chunk on the wire."""
        return max((chunk.nbytes for chunk in self.exchanged), default=0)

    # ------------------------------------------------------------------ by tensor

    def _by_tensor(self, flats: Mapping[int, Array], dtype: str | None) -> dict[int, Array]:
        """Put flat arrays of chunks together by tensor: flat copies, in memory order.

        Args:
            flats: by chunk index; what belongs to other chunks is 0.
            dtype: what they hold; None: what messages of each chunk hold.
        """
        specs = self._specs or []
        whole: dict[int, Array] = {}
        for chunk in self.chunks if flats else ():
            if chunk.index in flats:
                for view, piece in zip(self._parts(flats[chunk.index], chunk), chunk.pieces, strict=True):
                    if piece.tensor not in whole:
                        numel = specs[piece.tensor].numel
                        whole[piece.tensor] = self._allocate(numel, dtype or self._message_dtype(chunk), chunk.device)
                        whole[piece.tensor][:] = 0
                    self._copy([whole[piece.tensor][piece.start : piece.stop]], [view])
        return whole

    def _message_dtype(self, chunk: Chunk) -> str:
        """Return the dtype in which what a message holds is saved."""
        return chunk.wire.dtype

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

    def _reorder(self, flat: Array, old: TensorSpec, new: TensorSpec) -> Array:
        """Return the elements of a flat array in the memory order of a tensor whose strides have changed."""
        if old.memory_order == new.memory_order:
            return flat
        there = flat.reshape([old.shape[axis] for axis in old.memory_order])
        back = [old.memory_order.index(axis) for axis in new.memory_order]
        return self._permute(there, back).reshape(-1)

    def _parts(self, flat: Array, chunk: Chunk) -> Sequence[Array]:
        """Cut a flat array of a chunk's length into a flat view for each of its pieces."""
        return self._split(flat, chunk.sizes)


def work_dtype(dtype: str) -> str:
    """Return the dtype in which values of a dtype are computed with."""
    return "float32" if dtype in HALF else dtype


def _contiguous(spec: TensorSpec) -> TensorSpec:
    """Return a tensor of the same shape whose elements lie in the order of its axes."""
    strides = []
    stride = 1
    for extent in reversed(spec.shape):
        strides.append(stride)
        stride *= extent
    return replace(spec, strides=tuple(reversed(strides)))
