"""What an optimizer's state holds, without the devices on which it lies: to compare it, to send it, to place it."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..tensor_kinds import host_bytes

__all__ = ["digest", "for_here", "to_send"]

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)


class _Yours:
    """Stands for a value that does not travel: each rank keeps its own."""


def digest(state: Any) -> bytes:
    """Return 16 bytes that are equal where structure and values are equal, wherever the tensors lie.

    A tensor counts by dtype, shape and bytes; what :func:`to_send` leaves out counts by its type alone.
    """
    found = hashlib.blake2b(digest_size=16)
    _walk(state, found.update, set())
    return found.digest()


def _walk(value: Any, write: Callable[[Any], None], above: set[int]) -> None:
    kind = type(value)
    write(f"{kind.__module__}.{kind.__qualname__}(".encode())
    if id(value) in above:
        write(b"again")
    elif isinstance(value, PLAIN):
        write(repr(value).encode())
    elif isinstance(value, Tensor):
        _walk_tensor(value, write)
    elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        write(f"{value.dtype}{value.shape}".encode())
        write(value.tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            _walk(key, write, above)
            _walk(value[key], write, above | {id(value)})
    elif isinstance(value, list | tuple):
        for one in value:
            _walk(one, write, above | {id(value)})
    elif isinstance(value, set | frozenset):
        write(repr(sorted(map(repr, value))).encode())
    elif not _stays(value):
        write(pickle.dumps(value, protocol=2))
    write(b")")


def _walk_tensor(tensor: Tensor, write: Callable[[Any], None]) -> None:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    write(f"{local.dtype}{tuple(local.shape)}{local.layout}".encode())
    if local.layout == torch.strided and local.device.type != "meta" and not local.is_quantized:
        flat = local.detach().cpu().resolve_conj().resolve_neg().contiguous()
        write(host_bytes(flat))
    elif local.device.type != "meta":
        write(pickle.dumps(local.detach().cpu()))


def _stays(value: Any) -> bool:
    """Tell whether a value belongs to one rank: code, a device, or what does not pickle."""
    if callable(value) and not isinstance(value, type) and hasattr(value, "__code__"):
        return True
    if isinstance(value, torch.device | torch.Generator):
        return True
    try:
        pickle.dumps(value, protocol=2)  # as torch.save() does
    except Exception:  # whatever a class does when it is pickled
        return True
    return False


def to_send(value: Any) -> Any:
    """Return a copy of the structure with tensors on the host, and a mark where a value stays with its rank."""
    if isinstance(value, Tensor):
        plain = type(value) in (Tensor, torch.nn.Parameter) and not value.is_meta
        return value.detach().cpu() if plain else value
    if type(value) in PLAIN:
        return value
    if type(value) in (list, tuple):
        return type(value)(to_send(one) for one in value)
    if type(value) is dict:
        return {key: to_send(one) for key, one in value.items()}
    return _Yours() if _stays(value) else value


def for_here(received: Any, mine: Any) -> Any:
    """Return what was received with tensors on the devices of mine, and my own values where the sender kept its own.

    A tensor that has no counterpart in mine stays on the host.
    """
    if isinstance(received, Tensor):
        apart = isinstance(mine, Tensor) and not mine.is_meta and not received.is_meta
        return received.to(mine.device) if apart else received
    if type(received) is dict:
        others = mine if isinstance(mine, Mapping) else {}
        kept = {key: one for key, one in received.items() if not isinstance(one, _Yours) or key in others}
        return {key: for_here(one, others.get(key)) for key, one in kept.items()}
    if type(received) in (list, tuple):
        own: list[Any] = list(mine) if isinstance(mine, list | tuple) else []
        own += [None] * (len(received) - len(own))
        return type(received)(for_here(one, other) for one, other in zip(received, own, strict=False))
    return mine if isinstance(received, _Yours) else received
