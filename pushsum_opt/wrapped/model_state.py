"""The state of a model while it holds an average: copies of it, and a warning where it is kept without a copy."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import _torch_compat
from ..errors import ConfigurationError
from ..log import log
from ..tensor_kinds import is_uninitialized

__all__ = ["check_rank", "copy_to_host", "watched"]


def check_rank(rank: Any, own: int, size: int) -> None:
    """Raise ConfigurationError unless ``rank`` is one of the job, or None."""
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < size):
        raise ConfigurationError(f"rank {own}: rank={rank!r}: expected a rank, 0 to {size - 1}, or None for all")


def copy_to_host(state: Mapping[str, Any], *, wanted: bool) -> dict[str, Any] | None:
    """Return a copy of a state_dict on the CPU, if it is wanted here; names of one tensor share one copy.

    Shards of a DTensor are put together, which is collective: every rank calls this.
    """
    copies: dict[Any, Tensor] = {}
    copied = copy.copy(state)  # an OrderedDict with the versions of its modules stays one
    for key, value in state.items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        if wanted and isinstance(whole, Tensor) and (is_uninitialized(whole) or whole.is_meta):
            copied[key] = whole  # type: ignore[index]  # it has no values to copy
        elif wanted and isinstance(whole, Tensor):
            copied[key] = copies.setdefault(_identity(whole), _on_host(whole.detach()))  # type: ignore[index]
        elif wanted:
            copied[key] = copy.deepcopy(whole)  # type: ignore[index]
    return copied if wanted else None  # type: ignore[return-value]


def _on_host(tensor: Tensor) -> Tensor:
    """Return a copy. On the CPU it is a clone, which layouts without strides, such as MKL-DNN's, have too."""
    return tensor.clone() if tensor.device.type == "cpu" else tensor.to("cpu")


def _identity(tensor: Tensor) -> Any:
    if tensor.layout != torch.strided or tensor.is_nested or not tensor.numel():
        return id(tensor)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, str(tensor.device))


@contextmanager
def watched(model: nn.Module, block: AbstractContextManager[None], rank: int) -> Iterator[None]:
    """Enter a block, and warn after it where tensors of a ``model.state_dict()`` taken inside are still held."""
    taken: list[weakref.ref[Tensor]] = []

    def note(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}  # with keep_vars=True
        taken.extend(weakref.ref(t) for t in state.values() if isinstance(t, Tensor) and id(t) not in own)

    handle = _torch_compat.on_state_dict(model, note)
    try:
        with block:
            yield
    finally:
        if handle is not None:
            handle.remove()
    kept = sum(reference() is not None for reference in taken)
    if kept:
        log.warning(
            "rank %d: a state_dict() taken inside averaged() is kept beyond the block: its %d tensors are the model's "
            "own, and hold this rank's parameters again. Save it inside the block, or call "
            "optimizer.averaged_state_dict() on every rank instead, which returns copies",
            rank,
            kept,
        )
