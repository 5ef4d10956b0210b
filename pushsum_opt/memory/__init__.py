"""Where the parameters lie, and the arithmetic of push-sum on them: one protocol, one module per kind of array."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from .base import Memory
from .plan import Chunk, Piece, TensorSpec, WireFormat
from .planned import WIDTH
from .sums import Sums
from .verdict import Verdict

__all__ = ["Chunk", "Memory", "Piece", "Sums", "TensorSpec", "Verdict", "WireFormat", "bind"]


CHUNK_BYTES = 1 << 22
"""Small enough that a chunk is merged while it is still in the cache of a processor."""

CHUNK_BYTES_ON_DEVICE = 1 << 25
"""At least. On a device each chunk costs some kernel launches and an answer, so chunks are larger than on the host."""

CHUNKS_ON_DEVICE = 64
"""A large message has about this many chunks, because every poll costs time for each chunk that is under way."""


def bind(
    tensors: Sequence[Any],
    names: Sequence[str],
    wire_dtype: Any,
    chunk_bytes: int | None,
    direct: Callable[[], bool] = lambda: False,
    lane: tuple[int, int] = (0, 1),
    who: str = "this rank",
    by_element: Collection[str] = (),
) -> Memory:
    """Return the memory for tensors of one kind: all numpy arrays, or all torch tensors.

    Args:
        wire_dtype: None, a name such as "bfloat16", or a torch or numpy dtype.
        chunk_bytes: the largest piece of a message; None: what suits the memory.
        direct: asked only where tensors are on a GPU: whether the transport takes device memory.
        lane: (l, L): exchange part l of L of the tensors.
        who: whose tensors they are, for errors.
        by_element: names of tensors that are merged element by element, as buffers are.

    Raises:
        ConfigurationError: tensors of several kinds, or one that cannot be exchanged.
    """
    wire = None if wire_dtype is None else _dtype_name(wire_dtype)
    arrays = [isinstance(tensor, np.ndarray) for tensor in tensors]
    if tensors and all(arrays):
        from .array import ArrayMemory

        return ArrayMemory(tensors, names, wire, chunk_bytes or CHUNK_BYTES, lane, by_element=by_element)
    if any(arrays):
        raise ConfigurationError("tensors: expected only torch tensors or only numpy arrays, got some of each")
    for tensor, name in zip(tensors, names, strict=True):
        if not hasattr(tensor, "data_ptr"):
            raise ConfigurationError(f"{name}: expected a torch tensor or a numpy array, got {type(tensor).__name__}")
    device = _the_device(tensors)
    if device is None:
        from .host import HostMemory

        return HostMemory(tensors, names, wire, chunk_bytes or CHUNK_BYTES, lane, by_element=by_element)
    from .cuda import CudaDevice
    from .on_device import DeviceMemory

    stepped = [tensor for tensor, name in zip(tensors, names, strict=True) if name not in by_element]
    chunk_bytes = chunk_bytes or _chunk_bytes_on_device(stepped, wire)
    cuda = CudaDevice(device, who)
    return DeviceMemory(tensors, names, wire, chunk_bytes, lane, device=cuda, direct=direct(), by_element=by_element)


def _chunk_bytes_on_device(tensors: Sequence[Any], wire: str | None) -> int:
    """Return max(32 MiB, message / 64): the same on every rank, as it depends on shapes and dtypes alone.

    Buffers do not count: a rank may leave out others, until all have agreed."""
    most = WIDTH.get(wire or "", 8)
    message: int = sum(
        tensor.numel() * (2 if tensor.is_complex() else 1) * min(most, _real_width(tensor)) for tensor in tensors
    )
    return max(CHUNK_BYTES_ON_DEVICE, -(-message // CHUNKS_ON_DEVICE))


def _real_width(tensor: Any) -> int:
    """Return the bytes of one real element."""
    return int(tensor.element_size()) // (2 if tensor.is_complex() else 1)


def _the_device(tensors: Sequence[Any]) -> str | None:
    """Return the CUDA device on which tensors are; None where all are elsewhere."""
    devices = sorted({str(tensor.device) for tensor in tensors if tensor.device.type == "cuda"})
    if len(devices) > 1:
        raise ConfigurationError(
            f"parameters are on {' and '.join(devices)}: one process exchanges the memory of one device. Start one "
            "rank per GPU (`pushsum run -np N`) and put each rank's model on ps.local_device()"
        )
    return devices[0] if devices else None


def _dtype_name(dtype: Any) -> str:
    if isinstance(dtype, type) and issubclass(dtype, np.generic):
        dtype = np.dtype(dtype)
    return str(dtype).removeprefix("torch.")
