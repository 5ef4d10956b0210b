"""A private communicator on which every wait has a deadline."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ..errors import PeerFailed
from ..transport import TIMEOUT, Notice, Ticket, Transport, connect
from ..transport.set_up import LogStalls
from ..transport.waiting import Report, Waiter
from .meeting import Meeting

__all__ = ["Channel"]

SUM_AT_ONCE = 1 << 22
"""Numbers that are summed at a time: 32 MiB of float64."""
BROADCAST_AT_ONCE = 1 << 25
"""Bytes that are broadcast at a time: a count on the wire never passes 2^31."""
_LENGTH = struct.Struct("<q")


class Channel:
    """A group of ranks, a transport of its own for them, and what they do together on it.

    All methods but :meth:`tell`, :meth:`hear` and the properties are collective over the ranks of the channel. Where
    a method takes ``round``, that is the round in which the call is made, for messages; -1 where there are no rounds.
    They raise what :meth:`wait` raises.

    Args:
        transport: what carries the messages; it belongs to this channel from now on.
        report: told of waits and stalls.
        timeout: seconds without progress after which a wait fails.
    """

    def __init__(self, transport: Transport, report: Report, timeout: float) -> None:
        self.transport = transport
        self._waiter = Waiter(transport, report, timeout)

    @classmethod
    def open(
        cls,
        comm: Any,
        report: Report | None = None,
        *,
        timeout: float = TIMEOUT,
        ranks: Sequence[int] | None = None,
    ) -> Channel:
        """Open a channel over a communicator; see :func:`pushsum_opt.transport.connect`."""
        report = LogStalls(comm.Get_rank()) if report is None else report
        transport = connect(comm, timeout=timeout, ranks=ranks, report=report)
        return cls(transport, report, timeout)

    @property
    def rank(self) -> int:
        """This rank's number in the channel."""
        return self.transport.rank

    @property
    def size(self) -> int:
        """The number of ranks in the channel."""
        return self.transport.size

    @property
    def others(self) -> list[int]:
        """All ranks of the channel but this one."""
        return [rank for rank in range(self.size) if rank != self.rank]

    def job_rank(self, rank: int | None = None) -> int:
        """Return a rank of the channel, or this one, by its number in the job."""
        return self.transport.job_rank(rank)

    # ------------------------------------------------------------------ what all ranks do together

    def gather(self, mine: bytes, what: str, *, round: int = -1) -> Any:
        """Return what all ranks passed: a uint8 array of shape (size, len(mine)). All pass the same length."""
        ticket, rows = self.transport.gather(mine, what)
        self.wait((ticket,), round)
        return rows

    def gather_bytes(self, mine: bytes, what: str, *, round: int = -1) -> list[bytes]:
        """Return what all ranks passed, in the order of ranks. Lengths may differ."""
        lengths = [_LENGTH.unpack(row.tobytes())[0] for row in self.gather(_LENGTH.pack(len(mine)), what, round=round)]
        rows = self.gather(mine.ljust(max(1, *lengths), b"\0"), what, round=round)
        return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]

    def gather_objects(self, mine: Any, what: str, *, round: int = -1) -> list[Any]:
        """Return what all ranks passed, in the order of ranks: anything that JSON can hold."""
        return [json.loads(row) for row in self.gather_bytes(json.dumps(mine).encode(), what, round=round)]

    def sum(self, values: Any, what: str, *, round: int = -1) -> None:
        """Replace a flat numpy array (float64 or float32) by its sum over ranks, equal bits on each."""
        for start in range(0, max(1, values.size), SUM_AT_ONCE):
            self.wait((self.transport.sum(values[start : start + SUM_AT_ONCE], what),), round)

    def broadcast(self, buffer: Any, root: int, what: str, *, round: int = -1) -> None:
        """Copy the bytes of a flat uint8 array on rank ``root`` into everyone's."""
        for start in range(0, buffer.size, BROADCAST_AT_ONCE):
            self.wait((self.transport.broadcast(buffer[start : start + BROADCAST_AT_ONCE], root, what),), round)

    def barrier(self, what: str, *, round: int = -1) -> None:
        """Return once every rank has called this."""
        self.wait((self.transport.barrier(what),), round)

    def meet(self, call: str, *, round: int = -1, layout: bytes = bytes(8), beside: bytes = b"") -> list[bytes]:
        """Make sure that every rank makes the same call, in the same round.

        Args:
            layout: 8 bytes, of the tensors that the call is about: they must lie alike on all ranks.
            beside: what this rank tells the others; of the same length on all that make this call.

        Returns:
            What each rank tells the others.

        Raises:
            MismatchError: on every rank, where they make different calls, or their tensors lie differently.
        """
        meeting = Meeting(self.transport, call, round, layout, beside)
        self.wait((meeting.ticket,), round)
        return meeting.check()

    def let_everyone_know(self, what: str = "everyone to see the difference") -> None:
        """Return once every rank is here: call it before an error that all ranks raise, or before closing.

        A rank that has failed is no error.
        """
        with contextlib.suppress(PeerFailed):
            self.barrier(what)

    # ------------------------------------------------------------------ waiting

    def wait(self, tickets: Iterable[Ticket], round: int) -> None:
        """Wait until all transfers are done. See :meth:`Waiter.wait` for the errors."""
        self._waiter.wait(tickets, round)

    def wait_while(self, left: Callable[[], Sequence[Ticket]], round: int, *, patient: bool = False) -> None:
        """Wait until ``left()`` returns no tickets. See :meth:`Waiter.wait_while`."""
        self._waiter.wait_while(left, round, patient=patient)

    def begin_round(self, round: int) -> None:
        """From now on messages of this round are exchanged on the channel."""
        self._waiter.begin_round(round)

    # ------------------------------------------------------------------ the end

    def stop_others(self, reason: str) -> None:
        """Tell all ranks that this one stops. Local. It raises nothing: the caller raises the error at hand."""
        with contextlib.suppress(Exception):
            self.tell(range(self.size), failed=True, rounds=0, reason=reason)
            self.transport.poll(0.0)

    @property
    def finished(self) -> Mapping[int, Notice]:
        """The last notice of every rank that has finished."""
        return self._waiter.finished

    @property
    def closing(self) -> bool:
        """Whether this rank is finishing."""
        return self._waiter.closing

    def hear(self) -> None:
        """Take in what other ranks have said of themselves.

        Raises:
            PeerFailed: one of them has stopped with an error.
        """
        self._waiter.hear()

    def tell(self, ranks: Collection[int], *, failed: bool, rounds: int, reason: str = "") -> None:
        """Tell some ranks that this one has failed, or has finished. Returns at once.

        Args:
            rounds: how many this rank has completed.
            reason: of the failure.
        """
        notice = Notice(self.rank, failed, rounds, self.transport.collectives, reason)
        self.transport.tell(ranks, notice)

    def finish(self) -> None:
        """This rank finishes: from now on it is no error that another rank has finished. Local."""
        self._waiter.closing = True

    def hear_all_finish(self, ranks: Collection[int]) -> None:
        """Wait until some ranks have said by :meth:`tell` that they have finished: then nothing is left in flight."""
        while not set(ranks) <= self.finished.keys():
            self.transport.poll(1.0)
            self.hear()

    def close(self) -> None:
        """Free the transport. Local; idempotent."""
        self.transport.close()
