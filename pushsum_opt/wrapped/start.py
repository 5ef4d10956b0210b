"""A common start: rank 0's tensors and optimizer state reach every rank that differs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..channel import Channel, copying
from ..checkpoint.devices import keep_dtypes
from ..checkpoint.nesting import endless
from ..errors import ConfigurationError
from ..value_digest import digest
from .loading_state import load_state
from .state_values import for_here, to_send

__all__ = ["copy_start"]


def copy_start(channel: Channel, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Collective on a channel. Give every rank rank 0's values; state that is equal already does not travel.

    The state travels without its devices: each rank puts it on its own. Functions, and other values that cannot be
    pickled, stay what they are on each rank.
    """
    copying.broadcast_tensors(channel, tensors, 0)
    if channel.size == 1:
        return
    state = optimizer.state_dict()
    _refuse_endless(state, optimizer, tensors, channel.job_rank())
    if not copying.equal_everywhere(channel, digest(state)):
        received = copying.broadcast_bytes(channel, _to_bytes(state) if channel.rank == 0 else b"", 0)
        if channel.rank != 0:
            loaded = torch.load(io.BytesIO(received), map_location="cpu", weights_only=False)
            # load_state_dict takes what belongs to a parameter to the parameter's device; the rest is placed here.
            placed = for_here(loaded, state)
            load_state(optimizer, placed)
            keep_dtypes(optimizer, placed)


def _refuse_endless(state: Any, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rank: int) -> None:
    """Raise ConfigurationError for state that holds itself: it could be neither compared nor sent."""
    found = endless(state)
    if found is None:
        return
    path, why = found
    where = "optimizer.state_dict(), at " + "".join(f"[{key!r}]" for key in path[:4])
    numbered = [p for group in optimizer.param_groups for p in group["params"]]
    if path[0] == "state" and len(path) > 2 and path[1] in range(len(numbered)):
        names = [name for name, tensor in tensors.items() if tensor is numbered[path[1]]]
        where = f"state {path[2]!r} of parameter {', '.join(names)}"
    raise ConfigurationError(
        f"rank {rank}: {where} {why}, so it can be neither compared with other ranks' nor sent to them. Keep in the "
        "optimizer's state only tensors, numbers and containers of them, and what leads back to it as an attribute"
    )


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(to_send(state), buffer)
    return buffer.getvalue()
