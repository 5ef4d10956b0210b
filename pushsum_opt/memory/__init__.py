"""Where the slabs live: one protocol, one module per kind of array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from .base import Memory
from .plan import Chunk, Piece, TensorSpec, WireFormat

__all__ = ["Chunk", "Memory", "Piece", "TensorSpec", "WireFormat", "bind"]


def bind(tensors: Sequence[Any], names: Sequence[str], wire_dtype: Any, chunk_bytes: int) -> Memory:
    """Return the memory for tensors of one kind: all numpy arrays, or all torch tensors.

    Args:
        wire_dtype: None, a name such as "bfloat16", or a torch or numpy dtype.

    Raises:
        ConfigurationError: tensors of several kinds, or one that cannot be exchanged.
    """
    wire = None if wire_dtype is None else _dtype_name(wire_dtype)
    arrays = [isinstance(tensor, np.ndarray) for tensor in tensors]
    if tensors and all(arrays):
        from .array import ArrayMemory

        return ArrayMemory(tensors, names, wire, chunk_bytes)
    if any(arrays):
        raise ConfigurationError("tensors: expected only torch tensors or only numpy arrays, got some of each")
    for tensor, name in zip(tensors, names, strict=True):
        if not hasattr(tensor, "data_ptr"):
            raise ConfigurationError(f"{name}: expected a torch tensor or a numpy array, got {type(tensor).__name__}")
    from .host import HostMemory

    return HostMemory(tensors, names, wire, chunk_bytes)


def _dtype_name(dtype: Any) -> str:
    if isinstance(dtype, type) and issubclass(dtype, np.generic):
        dtype = np.dtype(dtype)
    return str(dtype).removeprefix("torch.")
