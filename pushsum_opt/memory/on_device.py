"""torch tensors of which some or all are on an accelerator.

What happens in every round (pack, check, merge) is one fused pass per chunk; what happens seldom is left to torch, on
the stream on which the caller computes. Buffers are left to torch too: they are merged element by element, and are
small. Chunks on the host are treated as :class:`HostMemory` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ConfigurationError
from .device import Device, Table
from .host import HostMemory
from .late_sums import Summing
from .plan import Chunk, TensorSpec, WireFormat
from .planned import WIDTH
from .primitives import Values
from .staging import Direct, Path, Slab, Staged
from .sums import Sums
from .verdict import Flags, LateVerdict, Verdict

__all__ = ["DeviceMemory"]


class DeviceMemory(HostMemory):
    """The tensors are torch tensors on one accelerator, or some there and some on the host.

    Args:
        device: the accelerator.
        direct: hand device memory to the transport; otherwise everything goes through pinned host memory.
    """

    pending_buffers = True

    def __init__(
        self,
        tensors: Sequence[Tensor],
        names: Sequence[str],
        wire_dtype: str | None,
        chunk_bytes: int,
        lane: tuple[int, int] = (0, 1),
        *,
        device: Device,
        direct: bool,
        by_element: Collection[str] = (),
    ) -> None:
        self._device = device
        self._path: Path = Direct(device) if direct else Staged(device)
        self._flags = Flags(device)
        self._tables: dict[int, Table] = {}
        self._unheard: list[tuple[Chunk, LateVerdict]] = []
        self._summing: Summing | None = None
        self._summed: tuple[Values, Any] | None = None  # signs, and which of their columns are on the device
        self.name = f"{device.name} ({self._path.name})"
        super().__init__(tensors, names, wire_dtype, chunk_bytes, lane, by_element=by_element)

    # ------------------------------------------------------------------ the plan

    def _plan(self, specs: Sequence[TensorSpec], wires: Sequence[WireFormat], most: int) -> tuple[Chunk, ...]:
        # Parameters lie in torch's pool, which other processes cannot always be given a handle to: on the device every
        # chunk is packed. Only this flag changes, so that ranks on the host still cut the same chunks.
        chunks = super()._plan(specs, wires, most)
        return tuple(replace(chunk, packed=True) if self._is_here(chunk) else chunk for chunk in chunks)

    def _rebuild(self) -> None:
        if self._tables:
            self._device.synchronize()  # whatever is replaced now may still be in use
        super()._rebuild()
        here = [chunk for chunk in self.exchanged if self._is_here(chunk)]
        self._device.prepare({(chunk.dtype, chunk.wire.dtype) for chunk in here})
        self._tables = {
            chunk.index: (self._device.coded_table if chunk.wire.coded else self._device.table)(views)
            for chunk, views in ((chunk, self._views[chunk.index]) for chunk in here)
            if not chunk.by_element and all(view.ndim == 1 and view.is_contiguous() for view in views)
        }
        if isinstance(self._path, Staged):
            self._path.most = len(here)
            self._path.largest = max((chunk.nbytes for chunk in here), default=0)

    def _is_here(self, chunk: Chunk) -> bool:
        return chunk.device == self._device.name

    def _where(self, local: Tensor, name: str) -> str:
        place = str(local.device)
        if place not in ("cpu", self._device.name):
            raise ConfigurationError(
                f"parameter {name} is on {place} and others are on {self._device.name}: one process exchanges the "
                "memory of one device. Start one rank per GPU (`pushsum run -np N`) and put each rank's model on "
                "ps.local_device()"
            )
        return place

    # ------------------------------------------------------------------ slabs and the wire

    @property
    def extra_bytes(self) -> int:
        return super().extra_bytes + self._path.held

    def prepared_thread(self) -> AbstractContextManager[None]:
        return self._device.in_use()

    def prepare_worker(self) -> None:
        self._device.let_captures_be()  # before the first call that a capture elsewhere might not bear
        self._device.use()

    def reserve(self) -> None:
        self._flags.reserve()
        self._path.reserve()

    def new_slab(self, nbytes: int, device: str = "cpu", what: str = "a chunk of a message") -> Any:
        if device == self._device.name:
            return self._path.new_slab(nbytes, what)
        return super().new_slab(nbytes, device, what)

    def new_slab_if_free(self, nbytes: int, device: str = "cpu") -> Any:
        if device == self._device.name:
            return self._path.new_slab_if_free(nbytes)
        return super().new_slab_if_free(nbytes, device)

    def wire_buffer(self, slab: Any, nbytes: int) -> Any:
        return self._path.wire(slab, nbytes) if isinstance(slab, Slab) else super().wire_buffer(slab, nbytes)

    def pack(self, chunk: Chunk, slab: Any, left: float = 1.0, given: float = 0.0) -> Any:
        if not isinstance(slab, Slab):
            return super().pack(chunk, slab, left, given)
        if chunk.wire.coded:
            return self._pack_coded(chunk, slab, left, given)
        stream = self._device.current()
        with self._path.writing(slab, chunk.nbytes, stream) as target:
            if chunk.index in self._tables:
                keep = given / left if chunk.rounded else 0.0
                self._device.pack(self._tables[chunk.index], target, chunk.dtype, chunk.wire.dtype, keep, stream)
                self._count_writes(self._views[chunk.index] if keep else ())
            else:
                self._copy(self._cut(self._view_as(target, chunk.wire.dtype), chunk), self._views[chunk.index])
        if chunk.rounded and given and chunk.index not in self._tables:
            self.keep_rounding(chunk, slab, left, given)
        return self._path.wire(slab, chunk.nbytes)

    def _pack_coded(self, chunk: Chunk, slab: Slab, left: float, given: float) -> Any:
        stream, nbytes = self._device.current(), self._packed_bytes(chunk)
        if chunk.index in self._tables:
            how = (self._bounds[chunk.index], self._residual.get(chunk.index), chunk.dtype)
            form = (self._whole, self._whole_left)
            with self._path.writing(slab, nbytes, stream) as target:
                self._device.pack_coded(self._tables[chunk.index], target, *how, form, left, given, stream)
            self._count_writes(self._views[chunk.index] if given and not self._whole else ())
        else:
            data = self._allocate(chunk.nbytes, "uint8", chunk.device)
            self._encode(chunk, data, left, given)
            with self._path.writing(slab, nbytes, stream) as target:
                self._device.copy(target, data[:nbytes], stream)
        return self._path.wire(slab, nbytes)

    def received_is_finite(self, chunk: Chunk, slab: Any) -> bool:
        if not isinstance(slab, Slab):
            return super().received_is_finite(chunk, slab)
        stream = self._device.current()
        flag = self._flags.take(stream)
        with self._path.reading(slab, chunk.nbytes, stream) as source:
            if chunk.wire.coded:
                self._device.check_coded(source, chunk.dtype, chunk.numel, flag, stream)
            else:
                self._device.check(source, chunk.wire.dtype, flag, stream)
        return LateVerdict(self._flags, flag, self._device.record(stream)).outcome().finite

    def merge_if_finite(self, chunk: Chunk, slab: Any, weight: float, mass: float, *, heal: bool = False) -> Verdict:
        if not isinstance(slab, Slab) or chunk.index not in self._tables:
            return super().merge_if_finite(chunk, slab, weight, mass, heal=heal)  # which waits for the check
        if chunk.wire.coded:
            return self._merge_coded(chunk, slab, weight, mass, heal)
        device, table, stream = self._device, self._tables[chunk.index], self._device.current()
        own, wire = chunk.dtype, chunk.wire.dtype
        flag = self._flags.take(stream)
        with self._path.reading(slab, chunk.nbytes, stream) as source:
            device.check(source, wire, flag, stream)
            if chunk.index in self._residual:
                residual = self._residual[chunk.index]
                device.merge_half(table, source, residual, own, weight, mass, flag, heal, stream)
            else:
                device.merge(table, source, own, wire, mass / (weight + mass), flag, heal, stream)
        self._count_writes(self._views[chunk.index])
        return LateVerdict(self._flags, flag, device.record(stream))

    def _merge_coded(self, chunk: Chunk, slab: Slab, weight: float, mass: float, heal: bool) -> Verdict:
        device, stream = self._device, self._device.current()
        flag = self._flags.take(stream)
        how = (self._bounds[chunk.index], self._residual.get(chunk.index), chunk.dtype, weight, mass)
        with self._path.reading(slab, chunk.nbytes, stream) as source:
            device.check_coded(source, chunk.dtype, chunk.numel, flag, stream)
            device.merge_coded(self._tables[chunk.index], source, *how, flag, heal, stream)
        self._count_writes(self._views[chunk.index])
        verdict = LateVerdict(self._flags, flag, device.record(stream))
        self._unheard.append((chunk, verdict))
        return verdict

    def begin_round(self) -> None:
        self._hear()
        super().begin_round()

    def wire_state(self) -> dict[str, Any]:
        self._hear()
        return super().wire_state()

    def _hear(self) -> None:
        """Let the form of messages follow from what has come in eight bits; wait where its merges are not done.

        So a run has the same bits however fast the device is. Merges of the round before are behind whatever the
        device has had to do since, so this wait leaves it enough to do.
        """
        for chunk, verdict in self._unheard:
            outcome = verdict.outcome()
            self.ask_for_whole(outcome.asked - self._late)
            self._heed(chunk, finite=outcome.finite, missed=outcome.missed, far=outcome.far)
        self._unheard.clear()

    def begin_sums(self, places: Sequence[tuple[Chunk, int, slice]], signs: Values) -> Sums:
        here = [self._is_here(self.chunks[chunk.index]) for chunk, _, _ in places]
        if not any(here):
            return super().begin_sums(places, signs)
        views = [self._views[chunk.index][piece] for chunk, piece, _ in places]
        counts = [len(range(view.numel())[elements]) for view, (_, _, elements) in zip(views, places, strict=True)]
        columns = np.repeat(here, counts)
        more = np.zeros(len(signs))
        if not all(here):
            on_host = [place for place, is_here in zip(places, here, strict=True) if not is_here]
            found = super().begin_sums(on_host, signs[:, ~columns]).result()
            if found is None:
                return Sums(None)
            more = found
        try:
            summing = self._summing_with(signs, columns)
            samples = [(view, place[2]) for view, place, is_here in zip(views, places, here, strict=True) if is_here]
            return Sums(None) if summing is None else summing.begin(samples, more)
        except torch.cuda.OutOfMemoryError:
            return Sums(None)  # some MiB are missing: no reason to end a training

    def _summing_with(self, signs: Values, columns: npt.NDArray[np.bool_]) -> Summing | None:
        """Return what sums with these columns of the signs; None where there is no pinned memory for it."""
        if self._summed is None or self._summed[0] is not signs or not np.array_equal(self._summed[1], columns):
            if self._summing is not None:
                self._device.synchronize()  # what is replaced now may still be in use
            self._summing = self._summed = None
            there = signs[:, columns]
            room = self._device.allocate_pinned_if_free((len(signs) + there.size) * WIDTH["float64"])
            if room is None:
                return None
            copied, found = (self._allocate(n, "float64", self._device.name) for n in (there.size, len(signs)))
            self._summing, self._summed = Summing(self._device, there, copied, found, room), (signs, columns)
        return self._summing

    def load_message_state(self, slabs: Mapping[int, Any], state: Mapping[str, Tensor]) -> None:
        data = {}
        for chunk in self.exchanged:
            slab = slabs[chunk.index]
            new = isinstance(slab, Slab)
            data[chunk.index] = self._allocate(chunk.nbytes, "uint8", chunk.device) if new else slab[: chunk.nbytes]
        self._fill({chunk.index: self._to_fill(chunk, data[chunk.index]) for chunk in self.exchanged}, state)
        for chunk in self.exchanged:
            self._code_again(chunk, data[chunk.index], state)
        for chunk in self.exchanged:
            slab = slabs[chunk.index]
            if isinstance(slab, Slab):
                stream = self._device.current()
                with self._path.writing(slab, chunk.nbytes, stream) as target:
                    self._device.copy(target, data[chunk.index], stream)

    def _slab_bytes(self, chunk: Chunk, slab: Any) -> Tensor:
        """Return a copy of a slab, on the caller's stream: for what happens seldom."""
        if not isinstance(slab, Slab):
            on_host: Tensor = super()._slab_bytes(chunk, slab)
            return on_host
        flat = self._allocate(chunk.nbytes, "uint8", chunk.device)
        stream = self._device.current()
        with self._path.reading(slab, chunk.nbytes, stream) as source:
            self._device.copy(flat, source, stream)
        return flat

    def close(self) -> None:
        self._device.synchronize()
        self._path.close()
        self._tables.clear()
        self._unheard.clear()
        self._summing = self._summed = None

    # ------------------------------------------------------------------ primitives

    def _wire_bytes(self, flat: Tensor) -> Any:
        """Return bytes on the host: for samples and fingerprints. What travels goes through a slab."""
        return flat.view(torch.uint8).cpu().numpy()

    def _to_numpy(self, array: Tensor) -> Values:
        values: Values = array.cpu().numpy()
        return values
