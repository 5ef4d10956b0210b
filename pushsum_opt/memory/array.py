"""numpy arrays on the host, without torch: hundreds of ranks fit on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigurationError
from .base import Memory
from .plan import Piece, TensorSpec, WireFormat, is_dense
from .primitives import Values

__all__ = ["ArrayMemory"]

Array = npt.NDArray[Any]
DTYPES = ("float16", "float32", "float64")
COMPLEX = {"complex64": "float32", "complex128": "float64"}


class ArrayMemory(Memory):
    """The tensors are numpy arrays."""

    name = "host (numpy)"
    _xp = np

    def _wire_format(self, spec: TensorSpec) -> WireFormat:
        if self._wire_dtype == "bfloat16":
            raise ConfigurationError(
                "wire_dtype='bfloat16': numpy has no such type. Pass torch tensors, or use 'float16' or 'float32'"
            )
        return super()._wire_format(spec)

    def _describe(self, tensor: Array, name: str) -> TensorSpec:
        dtype = str(tensor.dtype)
        if not tensor.flags.writeable:
            raise ConfigurationError(f"array {name} is read-only: it is changed in place. Pass a .copy()")
        if dtype not in (*DTYPES, *COMPLEX):
            expected = ", ".join((*DTYPES, *COMPLEX))
            raise ConfigurationError(f"array {name} is of dtype {dtype}: expected one of {expected}")
        real = _real(tensor)
        strides = tuple(stride // real.itemsize for stride in real.strides)
        if any(stride < 0 for stride in strides):
            raise ConfigurationError(f"array {name} has negative strides. Pass np.ascontiguousarray of it")
        return TensorSpec(real.shape, strides, str(real.dtype), real.itemsize)

    def _position(self, tensor: Array) -> object:
        return (tensor.ctypes.data, tensor.strides, tensor.shape, tensor.dtype)

    def _address(self, tensor: Array) -> int:
        return int(tensor.ctypes.data)

    def _lie_at(self, flats: Sequence[Array], addresses: npt.NDArray[np.int64]) -> bool:
        return True  # numpy moves no memory of which there are views

    def _count_writes(self, flats: Sequence[Array]) -> None:
        """Nobody counts."""

    def _piece_view(self, tensor: Array, piece: Piece) -> Array:
        real = _real(tensor)
        if not is_dense(real.shape, [stride // real.itemsize for stride in real.strides]):
            return real
        flat = np.lib.stride_tricks.as_strided(real, (real.size,), (real.itemsize,))
        return flat[piece.start : piece.stop]

    def _allocate(self, count: int, dtype: str, device: str) -> Array:
        return np.empty(count, dtype)

    def _split(self, flat: Array, sizes: list[int]) -> Sequence[Array]:
        return np.split(flat, np.cumsum(sizes)[:-1])

    def _permute(self, array: Array, axes: list[int]) -> Array:
        return array.transpose(axes)

    def _wire_bytes(self, flat: Array) -> Array:
        return flat.view(np.uint8)

    def _view_as(self, flat_bytes: Array, dtype: str) -> Array:
        return flat_bytes.view(dtype)

    def _copy(self, destinations: Sequence[Array], sources: Sequence[Array]) -> None:
        for destination, source in zip(destinations, sources, strict=True):
            np.copyto(destination, source, casting="same_kind")

    def _cast(self, destination: Array, source: Array) -> None:
        np.copyto(destination, source, casting="unsafe")

    def _lerp(self, destinations: Sequence[Array], others: Sequence[Array], fraction: float) -> None:
        for destination, other in zip(destinations, others, strict=True):
            step = other.astype(destination.dtype)
            with np.errstate(invalid="ignore"):  # inf - inf, of elements that are then kept
                step -= destination
                step *= destination.dtype.type(fraction)
                destination += step

    def _widen(self, array: Array, dtype: str) -> Array:
        return array.astype(dtype, copy=False)

    def _all_finite(self, array: Array) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):  # a sum may overflow where every element is finite
            return bool(np.isfinite(array.sum()) or np.isfinite(array).all())

    def _choose_finite(self, mine: Array, theirs: Array) -> Array:
        return np.where(np.isfinite(mine), mine, theirs)

    def _choose_number(self, mine: Array, theirs: Array) -> Array:
        return np.where(np.isnan(mine), theirs, mine)

    def _to_numpy(self, array: Array) -> Values:
        return array

    def _from_bytes(self, data: npt.NDArray[np.uint8]) -> Array:
        return data

    def _from_numpy(self, values: Values, device: str) -> Array:
        return values


def _real(array: Array) -> Array:
    """Return a complex array as a real one with a last axis of 2, and any other array as it is."""
    real = COMPLEX.get(str(array.dtype))
    if real is None:
        return array
    strides = (*array.strides, array.itemsize // 2)
    base = np.ndarray((*array.shape, 2), real, array.data, strides=strides) if array.flags.c_contiguous else None
    return base if base is not None else np.lib.stride_tricks.as_strided(array.real, (*array.shape, 2), strides)
