"""A hash of nested containers of tensors and values: equal on two ranks that hold the same, wherever it lies."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from ..tensor_kinds import host_bytes

__all__ = ["digest"]


def digest(value: Any) -> bytes:
    """Return 16 bytes. Devices do not count, nor do functions, which have no value to compare."""
    found = hashlib.blake2b(digest_size=16)
    _add(found, value)
    return found.digest()


def _add(found: Any, value: Any) -> None:
    found.update(type(value).__name__.encode() + b"(")
    if isinstance(value, Tensor):
        _add_tensor(found, value)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            _add(found, key)
            _add(found, one)
    elif isinstance(value, (str, bytes)):
        found.update(value.encode(errors="surrogatepass") if isinstance(value, str) else value)
    elif isinstance(value, Sequence):
        for one in value:
            _add(found, one)
    elif isinstance(value, Set):
        for item in sorted(digest(one) for one in value):
            found.update(item)
    elif value is None or isinstance(value, (bool, int, float, complex, torch.dtype)):
        found.update(repr(value).encode())
    elif not callable(value):
        try:
            found.update(pickle.dumps(value))
        except Exception:
            found.update(type(value).__qualname__.encode())
    found.update(b")")


def _add_tensor(found: Any, tensor: Tensor) -> None:
    local = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
    found.update(f"{local.dtype}{list(local.shape)}{local.layout}".encode())
    if local.layout != torch.strided:
        local = local.to_dense()
    if local.is_quantized:
        found.update(repr(local.qscheme()).encode())
        local = local.int_repr()
    if local.numel() and local.device.type != "meta":
        found.update(host_bytes(local.resolve_conj().resolve_neg().cpu().contiguous()))
