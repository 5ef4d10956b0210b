"""A common start: rank 0's tensors and optimizer state reach every rank that differs."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import collectives
from ..checkpoint.code import with_code, without_code
from ..checkpoint.devices import keep_dtypes
from ..checkpoint.value_digest import digest
from ..transport import Transport
from ..transport.waiting import Waiter

__all__ = ["copy_start"]


def copy_start(
    transport: Transport, waiter: Waiter, optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor]
) -> None:
    """Collective on a transport. Give every rank rank 0's values; state that is equal already does not travel."""
    collectives.broadcast_tensors(transport, waiter, tensors, 0)
    own = optimizer.state_dict()
    state = without_code(own)  # every rank has the functions of its own program
    if not collectives.equal_everywhere(transport, waiter, digest(state)):
        received = collectives.broadcast_bytes(transport, waiter, _to_bytes(state) if transport.rank == 0 else b"", 0)
        if transport.rank != 0:
            loaded = torch.load(io.BytesIO(received), map_location="cpu", weights_only=False)
            optimizer.load_state_dict(with_code(loaded, own))
            keep_dtypes(optimizer, loaded)


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
