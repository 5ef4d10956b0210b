"""torch tensors in host memory."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .._torch_compat import count_writes, form_guard
from ..errors import ConfigurationError
from ..tensor_kinds import host_bytes, local_part, refuse_unmixable
from .base import Memory
from .plan import Chunk, Piece, TensorSpec, is_dense
from .primitives import Values

__all__ = ["HostMemory"]

NAMES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()} | {"uint8": torch.uint8, "int32": torch.int32}
COMPLEX = (torch.complex64, torch.complex128)
PLAIN = frozenset((Tensor, nn.Parameter))


class HostMemory(Memory):
    """The tensors are torch tensors on the CPU; complex ones take part through their real view."""

    name = "host"
    _xp = torch

    def _describe(self, tensor: Tensor, name: str) -> TensorSpec:
        refuse_unmixable(tensor, name)
        local = _local(tensor)
        where = self._where(local, name)
        return TensorSpec(tuple(local.shape), local.stride(), NAMES[local.dtype], local.element_size(), where)

    def _where(self, local: Tensor, name: str) -> str:
        """Return where a tensor is, or raise ConfigurationError if that is no place for this kind of memory."""
        if local.device.type != "cpu":
            raise ConfigurationError(
                f"parameter {name} is on {local.device}, and the ones before it are on the host: put the whole model "
                "on its device before it is wrapped (CUDA devices can be exchanged, other accelerators cannot)"
            )
        return "cpu"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._guard: Callable[..., bool] | None = None
        self._addresses: list[int] = []
        # By slab: by the chunk's index, its parts.
        self._parts_of: MutableMapping[Tensor, dict[int, list[Tensor]]] = WeakIdKeyDictionary()
        super().__init__(*arguments, **options)

    def _rebuild(self) -> None:
        super()._rebuild()
        self._parts_of.clear()
        self._flat = {chunk.index for chunk in self.chunks if all(v.ndim == 1 for v in self._views[chunk.index])}

    def _position(self, tensor: Tensor) -> object:
        local = _storage_of(tensor)
        return (local.data_ptr(), local.stride(), local.shape, local.dtype)

    def _all_positions(self) -> list[object]:
        tensors = self._tensors
        if not PLAIN.issuperset(map(type, tensors)):
            return super()._all_positions()
        # The same, without a call of Python for each tensor: models of a thousand tensors are common. Not by map():
        # torch.compile in torch 2.4 would follow it into a compiled step.
        return [
            [tensor.data_ptr() for tensor in tensors],
            [tensor.stride() for tensor in tensors],
            [tensor.size() for tensor in tensors],
            [tensor.dtype for tensor in tensors],
        ]

    def _surely_unmoved(self) -> bool:
        # A third of what it takes to compare all positions, and no objects that Python has to collect.
        guard, tensors = self._guard, self._tensors
        return guard is not None and guard(*tensors) and [tensor.data_ptr() for tensor in tensors] == self._addresses

    def _make_proof(self) -> None:
        tensors = self._tensors
        self._guard = form_guard(tensors) if PLAIN.issuperset(map(type, tensors)) else None
        self._addresses = [tensor.data_ptr() for tensor in tensors] if self._guard is not None else []

    def _address(self, tensor: Tensor) -> int:
        return _local(tensor).data_ptr()

    def _lie_at(self, flats: Sequence[Tensor], addresses: npt.NDArray[np.int64]) -> bool:
        there: list[int] = addresses.tolist()
        return [flat.data_ptr() for flat in flats] == there

    def _count_writes(self, flats: Sequence[Tensor]) -> None:
        count_writes(flats)  # or backward() would not see that what it needs has changed

    def _piece_view(self, tensor: Tensor, piece: Piece) -> Tensor:
        local = _local(tensor)
        if not is_dense(local.shape, local.stride()):
            return local
        flat = local.as_strided((local.numel(),), (1,), local.storage_offset())
        return flat[piece.start : piece.stop]

    def _allocate(self, count: int, dtype: str, device: str) -> Tensor:
        if not torch.is_inference_mode_enabled():
            return torch.empty(count, dtype=DTYPES[dtype], device=device)
        with torch.inference_mode(False):  # what is made inside of it could not be written to outside
            return torch.empty(count, dtype=DTYPES[dtype], device=device)

    def _split(self, flat: Tensor, sizes: list[int]) -> Sequence[Tensor]:
        return torch.split(flat, sizes)

    def _permute(self, array: Tensor, axes: list[int]) -> Tensor:
        return array.permute(axes)

    def _wire_bytes(self, flat: Tensor) -> Any:
        return host_bytes(flat)

    def _view_as(self, flat_bytes: Tensor, dtype: str) -> Tensor:
        return flat_bytes.view(DTYPES[dtype])

    def _gather_into(self, flat: Tensor, chunk: Chunk) -> None:
        if chunk.index in self._flat:
            self._join(flat, self._views[chunk.index])
        else:
            super()._gather_into(flat, chunk)

    def _join(self, flat: Tensor, parts: Sequence[Tensor]) -> None:
        if flat.dtype == parts[0].dtype and flat.device.type == "cpu":
            torch.cat(list(parts), out=flat)  # a third of what a copy of each costs, where they are small
        else:
            super()._join(flat, parts)

    def _received_parts(self, chunk: Chunk, slab: Any) -> list[Tensor]:
        """Return them, made once for each slab: cutting costs as much as merging, where tensors are small."""
        if not isinstance(slab, Tensor):
            return super()._received_parts(chunk, slab)
        by_chunk = self._parts_of.get(slab)
        if by_chunk is None:
            by_chunk = self._parts_of[slab] = {}
        if chunk.index not in by_chunk:
            # Views of an alias: they must not keep the slab itself alive, or it would stay here.
            by_chunk[chunk.index] = super()._received_parts(chunk, slab.detach())
        return by_chunk[chunk.index]

    @torch.no_grad()
    def _copy(self, destinations: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        torch._foreach_copy_(list(destinations), list(sources))

    def _cast(self, destination: Tensor, source: Tensor) -> None:
        destination.copy_(source)

    @torch.no_grad()
    def _lerp(self, destinations: Sequence[Tensor], others: Sequence[Tensor], fraction: float) -> None:
        own = destinations[0].dtype
        if others[0].dtype != own:
            others = [other.to(own) for other in others]
        torch._foreach_lerp_(list(destinations), list(others), fraction)

    def _widen(self, array: Tensor, dtype: str) -> Tensor:
        return array.to(DTYPES[dtype])

    def _all_finite(self, array: Tensor) -> bool:
        # A sum reads the data once and is non-finite if any element is; it may also overflow, so then look closely.
        total = array.sum(dtype=torch.float32 if array.dtype in (torch.float16, torch.bfloat16) else None)
        return math.isfinite(total.item()) or bool(torch.isfinite(array).all())

    def _choose_finite(self, mine: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(torch.isfinite(mine), mine, theirs)

    def _choose_number(self, mine: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(torch.isnan(mine), theirs, mine)

    def _to_numpy(self, array: Tensor) -> Values:
        values: Values = array.numpy()
        return values

    def _to_host(self, array: Tensor) -> Tensor:
        return array.cpu()

    def _from_bytes(self, data: npt.NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(data)

    def _from_numpy(self, values: Values, device: str) -> Tensor:
        return torch.from_numpy(values).to(device)


def _storage_of(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or this rank's shard of a DTensor, as a plain tensor that shares its memory."""
    local = local_part(tensor)
    return local if type(local) in PLAIN else local.as_subclass(Tensor)


def _local(tensor: Tensor) -> Tensor:
    """Return what is exchanged of a parameter: detached, local, real."""
    local = _storage_of(tensor).detach()
    return torch.view_as_real(local) if local.dtype in COMPLEX else local
