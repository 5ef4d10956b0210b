"""Calls that all ranks make together: each says which one it makes, so that two different ones do not meet."""

from __future__ import annotations

import struct
from typing import Any

from ..errors import MismatchError
from ..transport import Ticket, Transport

__all__ = ["Meeting"]

_FORMAT = struct.Struct("<128sq")


class Meeting:
    """A barrier with a name.

    Args:
        call: the name of the call; of longer ones the first 128 bytes count.
        round: the round in which it is made; -1 where rounds may differ.
    """

    def __init__(self, transport: Transport, call: str, round: int) -> None:
        self._transport = transport
        self._call = call
        self._round = round
        self.ticket: Ticket
        self._rows: Any
        self.ticket, self._rows = transport.gather(_FORMAT.pack(call.encode(), round), call)

    def check(self) -> None:
        """Once the ticket is done: raise MismatchError, on every rank, unless all made the same call."""
        calls = [_FORMAT.unpack(row.tobytes()) for row in self._rows]
        if len(set(calls)) == 1:
            return
        texts = [call.rstrip(bytes(1)).decode(errors="replace") for call, _ in calls]
        names = [text + (f" in round {k}" if k >= 0 else "") for text, (_, k) in zip(texts, calls, strict=True)]
        own = self._transport.rank
        other = next(rank for rank in range(len(names)) if calls[rank] != calls[own])
        raise MismatchError(
            f"rank {self._transport.job_rank()} calls {names[own]} while rank {self._transport.job_rank(other)} calls "
            f"{names[other]}. "
            "All ranks must make the same collective calls in the same order, after the same number of rounds"
        )
