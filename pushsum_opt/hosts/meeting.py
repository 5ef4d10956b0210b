"""The ranks of a host tell each other at which point of the training loop they are, before they average anything.

Each rank sends a short message to each other one, so that a rank that waits can name the one that is missing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import MismatchError
from .groups import Hosts

__all__ = ["BACKWARD", "CLOSE", "Standing", "meet", "refuse_apart"]

MEETING_TAG = 1
BACKWARD = "backward()"
CLOSE = "close()"
CALLS = (BACKWARD, "step()", "step(closure)", "synchronize()", "gossip()", CLOSE)

_ROW = struct.Struct("<BBqqqdd16s")
_SKIPS, _JOINED, _HAS_LOSS, _SPARSE, _REDUCES = 1, 2, 4, 8, 16


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rank is in its training loop, and what it needs there."""

    call: str
    """The call that it is in; one of CALLS."""

    averagings: int = 0
    """How often its own backward() has averaged gradients since the last step."""

    parameters: int = 0
    """How many parameters its optimizer has."""

    needed: int = 0
    """How many of them have a gradient to be averaged."""

    digest: bytes = b""
    """Which ones, as a hash of 16 bytes."""

    skips: bool = False
    """It found an inf or nan and will not step."""

    joined: bool = False
    """It had no gradients of its own in this step and joined in the averaging of the others."""

    sparse: bool = False
    """One of its gradients is sparse, or lies otherwise than dense."""

    reduces: bool = False
    """It could leave the sum to torch.distributed, on the device."""

    scale: float = math.nan
    """The factor of its GradScaler, by which the gradients are still multiplied; nan: none."""

    loss: float | None = None
    """What its closure returned, where that is a number."""

    def pack(self) -> bytes:
        flags = _SKIPS * self.skips | _JOINED * self.joined | _HAS_LOSS * (self.loss is not None)
        flags |= _SPARSE * self.sparse | _REDUCES * self.reduces
        numbers = (self.averagings, self.parameters, self.needed, self.scale, self.loss or 0.0)
        return _ROW.pack(CALLS.index(self.call), flags, *numbers, self.digest)

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Standing:
        call, flags, averagings, parameters, needed, scale, loss, digest = _ROW.unpack(data)
        return cls(
            call=CALLS[call],
            averagings=averagings,
            parameters=parameters,
            needed=needed,
            digest=digest,
            skips=bool(flags & _SKIPS),
            joined=bool(flags & _JOINED),
            sparse=bool(flags & _SPARSE),
            reduces=bool(flags & _REDUCES),
            scale=scale,
            loss=loss if flags & _HAS_LOSS else None,
        )


def meet(hosts: Hosts, mine: Standing, round: int) -> list[Standing]:
    """Collective over a host. Return where each of its ranks is, in the order of lanes."""
    transport, others = hosts.channel.transport, hosts.channel.others
    rows = [bytearray(_ROW.size) for _ in range(hosts.lanes)]
    rows[hosts.lane][:] = mine.pack()
    tickets = [transport.expect(rows[lane], lane, MEETING_TAG, _awaited(hosts, lane, mine)) for lane in others]
    tickets += [transport.post(rows[hosts.lane], lane, MEETING_TAG, _awaited(hosts, lane, mine)) for lane in others]
    hosts.channel.wait(tickets, round)
    return [Standing.unpack(row) for row in rows]


def _awaited(hosts: Hosts, lane: int, mine: Standing) -> str:
    return f"rank {hosts.members[lane]} of the job, to meet the {mine.call} of rank {hosts.rank}"


def refuse_apart(hosts: Hosts, standings: Sequence[Standing], round: int) -> None:
    """Raise MismatchError, the same on every rank, unless all are at one point, or the others may join in there.

    A rank may join in the averaging of the others' backward() while it has averaged nothing of its own in this step:
    the loss of its batch depends on no parameter of this optimizer.
    """
    apart = {one.call for one in standings if one.call != BACKWARD}
    ahead = [one for one in standings if one.call != BACKWARD and one.averagings]
    mixed = any(one.call == BACKWARD for one in standings)
    if len(apart) > 1 or (mixed and (ahead or CLOSE in apart)):
        where = [
            f"rank {rank} is in {one.call}" + (f" after {one.averagings} times backward()" if one.averagings else "")
            for rank, one in zip(hosts.members, standings, strict=True)
        ]
        raise MismatchError(
            f"rank {hosts.rank}, round {round}: the ranks of this host are at different points of a step: "
            f"{', '.join(where[:8])}{', ...' if len(where) > 8 else ''}. They average gradients in backward(), so each "
            "must call backward(), synchronize() and step() equally often: give them equally many batches "
            "(DistributedSampler with drop_last=True), and put a backward() that only some of them make, or make more "
            "often, into `with optimizer.no_sync():`"
        )
    if len({one.parameters for one in standings}) > 1:
        counts = ", ".join(f"{one.parameters} on rank {r}" for r, one in zip(hosts.members, standings, strict=True))
        raise MismatchError(
            f"rank {hosts.rank}, round {round}: the ranks of this host optimize different numbers of parameters: "
            f"{counts}. Add and remove parameters on every rank, in the same step"
        )
