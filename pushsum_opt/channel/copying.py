"""Copies rank ``root``'s bytes and tensors to every rank, bit for bit and in place, whatever kind of tensor it is.

Values travel, not strides. Names, shapes, dtypes and kinds are compared first: they must be equal on all ranks.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigurationError
from .agreement import agree
from .channel import Channel

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["alike_everywhere", "broadcast_bytes", "broadcast_tensors", "equal_everywhere", "expanded", "once", "write"]

ALIKE = "Build the same model on every rank (same code, same arguments), and convert it alike"


def broadcast_bytes(channel: Channel, data: bytes, root: int) -> bytes:
    """Collective. Return rank ``root``'s bytes on every rank."""
    length = np.frombuffer(bytearray(struct.pack("<q", len(data))), np.uint8)
    channel.broadcast(length, root, "broadcast_object")
    count = struct.unpack("<q", length.tobytes())[0]
    buffer = np.frombuffer(bytearray(data[:count].ljust(count, b"\0")), np.uint8)
    channel.broadcast(buffer, root, "broadcast_object")
    return buffer.tobytes()


def equal_everywhere(channel: Channel, digest: bytes) -> bool:
    """Collective. Tell whether all ranks passed the same bytes."""
    return len(set(channel.gather_bytes(digest, "comparing states"))) == 1


def broadcast_tensors(channel: Channel, tensors: Mapping[str, Tensor], root: int) -> None:
    """Collective. Copy rank ``root``'s tensors, of any dtype, to every rank, in place.

    Tensors without values (on the meta device) are left as they are. With one rank nothing is touched.

    Raises:
        MismatchError: on every rank, where names, shapes, dtypes or kinds differ; nothing has changed then.
        ConfigurationError: on every rank, where a tensor is of a kind whose values cannot travel.
    """
    from .. import tensor_kinds

    if channel.size > 1:
        agree(channel, {name: tensor_kinds.described(t) for name, t in tensors.items()}, fix=ALIKE)
    for name, value in tensors.items():
        if not hasattr(value, "detach"):
            raise ConfigurationError(
                f"rank {channel.job_rank()}: {name} is a {type(value).__name__}: expected torch tensors only. "
                "broadcast_object() takes anything that pickles"
            )
    if channel.size == 1:
        return
    for name, tensor in tensors.items():
        if tensor_kinds.is_uninitialized(tensor):
            raise ConfigurationError(
                f"rank {channel.job_rank()}: {name} belongs to a lazy module and has no shape yet, so rank "
                f"{channel.job_rank(root)}'s values cannot be copied. Run one batch through the model on every rank "
                "first"
            )
    parts = {name: tensor_kinds.plain_parts(tensor) for name, tensor in tensors.items()}
    plain = [part for found in parts.values() for part in found or ()]
    _broadcast_plain(channel, plain, root)
    for name, tensor in tensors.items():
        if parts[name] is None:
            _broadcast_saved(channel, name, tensor, root)


# ---------------------------------------------------------------------- tensors in plain memory


def _broadcast_plain(channel: Channel, tensors: list[Tensor], root: int) -> None:
    """Copy tensors in plain memory. Elements that are expanded travel once, where every rank expands alike."""
    import torch

    from .. import tensor_kinds

    alike = alike_everywhere(channel, tensors)
    with torch.no_grad():
        for tensor in tensors:
            held = once(tensor) if alike else tensor
            if not held.numel():
                continue
            flat = held.cpu().resolve_conj().resolve_neg().contiguous()
            if channel.rank != root and flat.data_ptr() == held.data_ptr():
                flat = flat.clone()  # an interrupt leaves each tensor whole, and no transfer writes to it later
            channel.broadcast(tensor_kinds.host_bytes(flat), root, "broadcast_parameters")
            if channel.rank != root:
                write(tensor, held, flat)


def alike_everywhere(channel: Channel, tensors: Iterable[Tensor]) -> bool:
    """Collective. Tell whether all ranks expand these tensors along the same axes."""
    layouts = repr([expanded(tensor) for tensor in tensors]).encode()
    return equal_everywhere(channel, hashlib.blake2b(layouts, digest_size=16).digest())


def expanded(tensor: Tensor) -> list[int]:
    """List the axes along which all elements are one in memory."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return [axis for axis, (stride, extent) in enumerate(pairs) if stride == 0 and extent > 1]


def once(tensor: Tensor) -> Tensor:
    """Return a view without expanded axes, which holds every element once."""
    for axis in expanded(tensor):
        tensor = tensor.narrow(axis, 0, 1)
    return tensor


def write(tensor: Tensor, held: Tensor, values: Tensor) -> None:
    """Set a tensor to values. A tensor that is expanded, and so cannot hold them, gets new memory.

    Args:
        held: the tensor, or what :func:`once` returned of it.
        values: of the shape of ``held``.
    """
    import torch

    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        if held.is_nested:
            tensor.data = values.to(tensor.device, copy=True)
            return
        axes = expanded(held)
        if not axes:
            held.copy_(values)
            return
        single = values
        for axis in axes:
            single = single.narrow(axis, 0, 1)
        if torch.equal(single.expand(values.shape), values):
            once(held).copy_(single)
        else:
            tensor.data = values.to(tensor.device, copy=True)


# ---------------------------------------------------------------------- tensors in a form of their own


def _broadcast_saved(channel: Channel, name: str, tensor: Tensor, root: int) -> None:
    """Copy a sparse, quantized or nested tensor in its saved form. It does not travel where it is equal already."""
    import torch

    try:
        file = io.BytesIO()
        torch.save(tensor.detach(), file)
    except Exception as error:
        raise ConfigurationError(
            f"rank {channel.job_rank()}: {name} ({type(tensor).__name__}, {tensor.layout}) cannot be copied from rank "
            f"{channel.job_rank(root)}: {error}. Make it the same on every rank, and keep it out of the model while "
            "it is wrapped: as a plain attribute, not a buffer or parameter"
        ) from error
    mine = file.getvalue()
    if equal_everywhere(channel, hashlib.blake2b(mine, digest_size=16).digest()):
        return
    theirs = broadcast_bytes(channel, mine if channel.rank == root else b"", root)
    if channel.rank != root:
        received = torch.load(io.BytesIO(theirs), map_location="cpu", weights_only=False)
        _put(tensor, received.to(tensor.device))


def _put(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor that is not in plain memory other values, which may be another number of sparse elements."""
    import torch

    if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
            tensor.resize_as_sparse_(values).copy_(values)  # an assignment to .data changes nothing, and says nothing
    else:
        tensor.data = values
