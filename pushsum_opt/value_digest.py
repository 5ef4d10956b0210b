"""A hash of nested containers of tensors and values: equal where they hold the same, wherever the tensors lie."""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections import deque
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tensor_kinds import host_bytes, local_part, plain_parts

__all__ = ["PLAIN", "belongs_to_one_rank", "digest"]

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)
_OF_ONE_RANK = (functools.partial, torch.device, torch.Generator, torch.nn.Module, torch.optim.Optimizer)
Write = Callable[[Any], None]


def digest(value: Any) -> bytes:
    """Return 16 bytes that are equal where structure and values are equal.

    A tensor counts by dtype, shape and values, and not by its device; the order of keys does not count; of what
    :func:`belongs_to_one_rank` only the type does.
    """
    found = hashlib.blake2b(digest_size=16)
    _walk(value, found.update, set())
    return found.digest()


def belongs_to_one_rank(value: Any) -> bool:
    """Tell whether a value has no meaning elsewhere, or a part in this program that a copy of it has not.

    That is code, a device, a generator, a module, an optimizer, or what does not pickle.
    """
    if callable(value) and not isinstance(value, type) and hasattr(value, "__code__"):
        return True
    return isinstance(value, _OF_ONE_RANK) or _pickled(value) is None


def _walk(value: Any, write: Write, above: set[int]) -> None:
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
    elif isinstance(value, list | tuple | deque):
        for one in value:
            _walk(one, write, above | {id(value)})
    elif isinstance(value, Set):
        for each in sorted(digest(one) for one in value):
            write(each)
    elif not belongs_to_one_rank(value):
        write(_pickled(value))
    write(b")")


def _walk_tensor(tensor: Tensor, write: Write) -> None:
    local = local_part(tensor).detach()
    write(f"{local.dtype}{tuple(local.shape)}{local.layout}".encode())
    parts = plain_parts(local)
    if local.layout == torch.sparse_coo and not local.is_meta:
        whole = local.coalesce()
        parts = [whole.indices(), whole.values()]
    if parts is None:
        write(_pickled(local.cpu()) or b"")
    for part in parts or ():
        write(host_bytes(part.cpu().resolve_conj().resolve_neg().contiguous()))


def _pickled(value: Any) -> bytes | None:
    """Return a value's pickle; None where it has none, whatever its class does when it is pickled."""
    try:
        return pickle.dumps(value, protocol=2)  # as torch.save() does
    except Exception:
        return None
