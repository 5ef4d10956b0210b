"""Takes a nested state apart into its plain tensors and the tree that is left of it, and puts it together again.

The tree is small, and is written as a checkpoint on disk is. The tensors can be copied as they lie, without a pickle.
"""

from __future__ import annotations

import collections
import copy
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .nesting import endless
from .refused import first_line, load_safely, no_end, refused
from .safe_types import decode, encode

__all__ = ["Apart", "Place", "pack_tree", "put_together", "take_apart", "unpack_tree"]

_CONTAINERS = (dict, collections.OrderedDict, list, tuple)


@dataclass(frozen=True)
class Place:
    """How a tensor lies in a file, without gaps: what is needed to make a view of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        """Return the place of a tensor. Its strides are kept where it has no gaps; otherwise it becomes contiguous."""
        shape = tuple(tensor.shape)
        stride = tensor.stride() if _is_dense(tensor) else _contiguous_stride(shape)
        return cls(str(tensor.dtype).removeprefix("torch."), shape, tuple(stride))

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return int(torch.Size(self.shape).numel()) * dtype.itemsize

    def view(self, flat: Tensor) -> Tensor:
        """Return a flat uint8 tensor of :attr:`nbytes` bytes as a tensor of this dtype, shape and stride."""
        return flat.view(getattr(torch, self.dtype)).as_strided(self.shape, self.stride)


@dataclass
class Apart:
    """A state in two parts."""

    tree: Any
    """The state, with a tuple (mark, number) in the place of each plain tensor."""

    mark: str = field(default_factory=lambda: os.urandom(8).hex())
    """Says that a tuple stands for a tensor; drawn anew for each state, so that no value of a user is taken for one."""

    tensors: list[Tensor] = field(default_factory=list)
    """Each tensor once, however often the state holds it."""


def take_apart(value: Any) -> Apart:
    """Take every plain tensor out of nested dicts, lists and tuples. Nothing is copied, and ``value`` stays as it is.

    Raises:
        CheckpointError: a container holds itself.
    """
    found = endless(value)
    if found is not None:
        raise CheckpointError(no_end(*found))
    apart = Apart(None)
    apart.tree = _taken(value, apart, {})
    return apart


def put_together(tree: Any, mark: str, tensors: Sequence[Tensor]) -> Any:
    """Return the state that :func:`take_apart` took apart."""
    if type(tree) is tuple and len(tree) == 2 and tree[0] == mark:
        return tensors[tree[1]]
    if type(tree) in (list, tuple):
        return type(tree)([put_together(one, mark, tensors) for one in tree])
    if type(tree) in (dict, collections.OrderedDict):
        filled = copy.copy(tree)
        for key, one in tree.items():
            filled[key] = put_together(one, mark, tensors)
        return filled
    return tree


def pack_tree(tree: Any, *, check: bool = True) -> bytes:
    """Write a tree as bytes that are read back without running code from them.

    Args:
        check: read it back at once, which takes as long as three times writing it.

    Raises:
        CheckpointError: it holds what cannot be read back so; it names what and where.
    """
    tree = encode(tree)
    written = io.BytesIO()
    try:
        torch.save(tree, written)
        packed = written.getvalue()
        if check:
            unpack_tree(packed)
    except Exception as error:
        raise CheckpointError(refused(tree, error)) from error
    return packed


def unpack_tree(packed: bytes) -> Any:
    """Read what :func:`pack_tree` wrote.

    Raises:
        CheckpointError: it is not that.
    """
    try:
        return decode(load_safely(io.BytesIO(packed)))
    except Exception as error:
        raise CheckpointError(f"torch cannot read it: {first_line(error)}") from error


def _taken(value: Any, apart: Apart, known: dict[Any, int]) -> Any:
    if isinstance(value, Tensor):
        if not _is_plain(value):
            return value
        # A tied parameter is saved under both of its names, and once.
        key = value.data_ptr(), value.dtype, value.shape, value.stride(), value.device
        if key not in known:
            known[key] = len(apart.tensors)
            apart.tensors.append(value.detach())
        return apart.mark, known[key]
    if type(value) not in _CONTAINERS:
        return value
    if isinstance(value, list | tuple):
        return type(value)(_all_taken(value, apart, known))
    taken = copy.copy(value)  # an OrderedDict with the versions of its modules keeps these
    for key, one in zip(value, _all_taken(value.values(), apart, known), strict=True):
        taken[key] = one
    return taken


def _all_taken(values: Iterable[Any], apart: Apart, known: dict[Any, int]) -> list[Any]:
    return [one if type(one) in (int, float, str, bool) else _taken(one, apart, known) for one in values]


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is bytes and nothing else; others (sparse, quantized, subclasses) stay in the tree."""
    return (
        type(tensor) is Tensor
        and not tensor.requires_grad
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta or tensor.is_neg() or tensor.is_conj())
        and tensor.numel() > 0
    )


def _contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    stride, step = [], 1
    for length in reversed(shape):
        stride.append(step)
        step *= max(1, length)
    return tuple(reversed(stride))


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether its elements fill a block of memory, each place once, in whatever order of axes."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True
