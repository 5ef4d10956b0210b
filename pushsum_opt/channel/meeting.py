"""A barrier in which all ranks compare which call they make, so that two different calls never wait for each other."""

from __future__ import annotations

import struct
from typing import Any

from ..errors import MismatchError
from ..transport import Ticket, Transport

__all__ = ["Meeting"]

_FORMAT = struct.Struct("<128sq8s")


class Meeting:
    """A barrier with a name.

    Args:
        call: the name of the call; of longer ones the first 128 bytes count.
        round: the round in which it is made; -1 where rounds may differ.
        layout: 8 bytes, the digest of the tensors that are summed afterwards: it must be equal on all ranks.
        beside: what this rank tells the others; of the same length on all that make this call.
    """

    def __init__(
        self, transport: Transport, call: str, round: int, layout: bytes = bytes(8), beside: bytes = b""
    ) -> None:
        self._transport = transport
        self._call = call
        self._round = round
        self.ticket: Ticket
        self._rows: Any
        self.ticket, self._rows = transport.gather(_FORMAT.pack(call.encode(), round, layout) + beside, call)

    def check(self) -> list[bytes]:
        """Raise MismatchError, on every rank, unless all made the same call. Call it once the ticket is done.

        Parameters that lie differently are a mismatch too: a sum would then add different elements.

        Returns:
            What each rank tells the others.
        """
        told = [row.tobytes() for row in self._rows]
        rows = [_FORMAT.unpack_from(row) for row in told]
        calls = [(call, round) for call, round, _ in rows]
        if len(set(calls)) == 1:
            self._refuse_other_layouts([layout for _, _, layout in rows])
            return [row[_FORMAT.size :] for row in told]
        texts = [call.rstrip(bytes(1)).decode(errors="replace") for call, _ in calls]
        names = [text + (f" in round {k}" if k >= 0 else "") for text, (_, k) in zip(texts, calls, strict=True)]
        own = self._transport.rank
        other = next(rank for rank in range(len(names)) if calls[rank] != calls[own])
        raise MismatchError(
            f"rank {self._transport.job_rank()} calls {names[own]} while rank {self._transport.job_rank(other)} calls "
            f"{names[other]}. "
            "All ranks must make the same collective calls in the same order, after the same number of rounds"
        )

    def _refuse_other_layouts(self, layouts: list[bytes]) -> None:
        own = self._transport.rank
        other = next((rank for rank, layout in enumerate(layouts) if layout != layouts[own]), None)
        if other is not None:
            in_round = f" in round {self._round}" if self._round >= 0 else ""
            raise MismatchError(
                f"rank {self._transport.job_rank()} in {self._call}{in_round}: the parameters of rank "
                f"{self._transport.job_rank(other)} have other shapes, strides or dtypes than on this rank. Convert "
                "the model (memory_format, dtype) on every rank at the same step"
            )
