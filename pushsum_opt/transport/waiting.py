"""Every wait of the library: with a deadline, with a stall line before it, and ended at once by a peer's notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ..errors import PeerFailed, PeerFinished, PeerTimeout
from .base import Notice, Ticket, Transport

__all__ = ["Report", "Waiter"]


class Report(Protocol):
    """What the waiter reports to; :class:`pushsum_opt.events.Events` is one."""

    def waited(self, seconds: float) -> None: ...

    def stalled(self, seconds: float, what: str) -> None: ...


class Waiter:
    """Waits for tickets of one transport.

    Args:
        transport: what is polled.
        report: told of waits and stalls.
        timeout: seconds without any progress after which a wait fails.
        stall_seconds: seconds without progress after which, and again each time after, a stall is reported.
    """

    def __init__(self, transport: Transport, report: Report, timeout: float, stall_seconds: float) -> None:
        self._transport = transport
        self._report = report
        self._timeout = timeout
        self._stall_seconds = stall_seconds
        self.finished: dict[int, Notice] = {}
        """The last notice of every rank that has finished."""
        self.closing = False
        """This rank finishes too: then it is no error that another one has."""

    def wait(self, tickets: Iterable[Ticket], round: int) -> None:
        """Poll until every ticket is done.

        Args:
            round: the round that the tickets belong to; a peer that finished before it will never serve them.

        Raises:
            PeerTimeout: nothing moved for ``timeout`` seconds.
            PeerFinished: a peer that is waited for has finished.
            PeerFailed: any rank has stopped with an error.
        """
        pending = list(tickets)

        def left() -> list[Ticket]:
            pending[:] = [ticket for ticket in pending if not ticket.done]
            return pending

        self.wait_while(left, round)

    def wait_while(self, left: Callable[[], Sequence[Ticket]], round: int, *, patient: bool = False) -> None:
        """Poll until ``left()`` returns no tickets any more; it may do work of its own each time.

        Args:
            patient: without a deadline: for a rank that has finished and lets others take all the time they need.

        Raises:
            As :meth:`wait` does.
        """
        pending = left()
        if not pending:
            return
        begin = moved = time.monotonic()
        said = 1
        try:
            while True:
                progress = self._transport.poll(min(1.0, self._timeout, self._stall_seconds))
                pending = left()
                if not pending:
                    return
                self.hear()
                self._refuse_finished(pending, round)
                now = time.monotonic()
                if progress:
                    moved, said = now, 1
                elif now - moved >= self._timeout and not patient:
                    raise PeerTimeout(self._timeout_message(pending[0], round, now - moved))
                elif now - moved >= said * self._stall_seconds:
                    said += 1
                    self._report.stalled(now - moved, f"{_who(pending[0])}, round {round}")
        finally:
            self._report.waited(time.monotonic() - begin)

    def hear(self) -> None:
        """Take in the notices that have come.

        Raises:
            PeerFailed: one of them says that its sender stopped with an error.
        """
        for notice in self._transport.notices():
            if notice.failed:
                raise PeerFailed(f"rank {self._transport.rank}: rank {notice.sender} stopped: {notice.reason}")
            self.finished[notice.sender] = notice

    def _refuse_finished(self, pending: Iterable[Ticket], round: int) -> None:
        if self.closing:
            return
        for ticket in pending:
            if ticket.peer is None:
                gone = [n for n in self.finished.values() if n.collectives < ticket.collective]
            else:
                gone = [n for n in self.finished.values() if n.sender == ticket.peer and n.rounds <= round]
            if gone:
                notice = gone[0]
                raise PeerFinished(
                    f"rank {self._transport.rank}: rank {notice.sender} finished after {notice.rounds} rounds, while "
                    f"this rank waits for {ticket.what} in round {round}. Every rank must take the same number of "
                    "steps and make the same collective calls: give all ranks the same number of batches "
                    "(DistributedSampler with drop_last=True), and do not break out of the loop on some ranks only"
                )

    def _timeout_message(self, ticket: Ticket, round: int, seconds: float) -> str:
        return (
            f"rank {self._transport.rank}: waited {seconds:.1f} s for {_who(ticket)}, round {round}, and nothing came. "
            "Likely causes: that rank skipped a step() or a collective call, hangs, is much slower than this one, or "
            "its host or network is gone. Look at its stack (py-spy dump --pid ...), make sure that every rank calls "
            f"step() equally often, or give more time with timeout= (now {self._timeout:g} s)"
        )


def _who(ticket: Ticket) -> str:
    if ticket.peer is None:
        return f"{ticket.what}, a collective call that not every rank has made"
    return f"rank {ticket.peer}: {ticket.what}"
