"""A common start: rank 0's tensors and optimizer state reach every rank that differs."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from typing import IO, Any, cast

import torch
from torch import Tensor

from .. import collectives
from ..transport import Transport
from ..transport.waiting import Waiter

__all__ = ["copy_start"]


def copy_start(
    transport: Transport, waiter: Waiter, optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor]
) -> None:
    """Collective on a transport. Give every rank rank 0's values; state that is equal already does not travel."""
    collectives.broadcast_tensors(transport, waiter, tensors, 0)
    state = optimizer.state_dict()
    if not collectives.equal_everywhere(transport, waiter, _digest(state)):
        received = collectives.broadcast_bytes(transport, waiter, _to_bytes(state) if transport.rank == 0 else b"", 0)
        if transport.rank != 0:
            optimizer.load_state_dict(torch.load(io.BytesIO(received), weights_only=False))


class _Digest(io.RawIOBase):
    """A file that keeps only the hash of what is written: a state need not fit into memory twice to be compared."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def _digest(state: dict[str, Any]) -> bytes:
    file = _Digest()
    torch.save(state, cast(IO[bytes], file))
    return file.hash.digest()


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
