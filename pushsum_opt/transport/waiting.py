"""Every wait of the library has a deadline, logs stall lines before it, and ends at once by a peer's notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from .. import settings
from ..clock import Clock
from ..errors import PeerError, PeerFailed, PeerFinished, PeerTimeout
from .base import Notice, Ticket, Transport
from .calls import current_call
from .roll_call import LISTEN_AFTER_S, Need, Progress, Waiting

__all__ = ["Report", "Waiter"]


class Report(Protocol):
    """What the waiter reports to; :class:`pushsum_opt.events.Events` is one."""

    def wait_begins(self, call: str, peer: int | None, round: int) -> None: ...

    def wait_ends(self, call: str, peer: int | None, round: int, seconds: float) -> None: ...

    def stalled(self, seconds: float, what: str) -> None: ...


class Polled(Protocol):
    """What the waiter polls; a transport is one."""

    rank: int

    @property
    def clock(self) -> Clock: ...

    @property
    def progress(self) -> Progress | None: ...

    def job_rank(self, rank: int | None = None) -> int: ...

    def poll(self, seconds: float) -> bool: ...

    def notices(self) -> list[Notice]: ...


class Waiter:
    """Waits for tickets of one transport.

    Args:
        transport: what is polled.
        report: told of waits and stalls.
        timeout: seconds without any progress after which a wait fails.
        stall_seconds: seconds without progress after which a stall is reported, and again after each further so many;
            None: PUSHSUM_STALL_SECONDS.
    """

    def __init__(self, transport: Polled, report: Report, timeout: float, stall_seconds: float | None = None) -> None:
        self._transport = transport
        self._report = report
        self._timeout = timeout
        self._stall_seconds = settings.read().stall_seconds if stall_seconds is None else stall_seconds
        self._counts_rounds = False
        self.finished: dict[int, Notice] = {}
        """The last notice of every rank that has finished."""
        self._failure: Notice | None = None
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
        clock = self._transport.clock
        begin = moved = clock()
        said = 1
        slice = min(LISTEN_AFTER_S, self._timeout, self._stall_seconds)
        call = current_call(pending[0].what)
        last = pending[0]  # of several, the one that was missing to the end is what this rank waited for
        self._report.wait_begins(call, _peer(last), round)
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: self._report.wait_ends(call, _peer(last), round, clock() - begin))
            waiting: Waiting | None = None
            while True:
                last = pending[0]
                moved_now = self._transport.poll(slice)
                pending = left()
                if pending and self._listen():  # what a rank did before it failed may be all that is needed
                    with contextlib.suppress(PeerError):
                        self._transport.poll(0.0)
                    pending = left()
                if not pending:
                    return
                self._refuse_failed()
                self._refuse_finished(pending, round)
                now = clock()
                if moved_now:
                    moved, said = now, 1
                    continue
                if waiting is None:
                    waiting = self._roll_call(pending[0], round)
                    if waiting is not None:
                        stack.enter_context(waiting)
                if waiting is not None:
                    with self._alone():
                        what = pending[0].what
                        what += "" if f"round {round}" in what else _in_round(round, ", in")
                        waiting.look(self._needs(pending, round), now - moved, what)
                if now - moved >= said * self._stall_seconds:  # said before an error, however late this looks
                    said += 1
                    what = ". ".join(filter(None, (self._describe(pending[0], round, waiting), _chain(waiting))))
                    self._report.stalled(now - moved, what)
                if now - moved >= self._timeout and not patient:
                    raise PeerTimeout(self._timeout_message(pending[0], round, now - moved, waiting))

    def begin_round(self, round: int) -> None:
        """From now on messages of this round are exchanged: a rank that waits for this one's will get them."""
        self._counts_rounds = True
        if self._transport.progress is not None:
            self._transport.progress.reach_round(round + 1)

    # ------------------------------------------------------------------ what other ranks say

    def hear(self) -> None:
        """Take in the notices that have come.

        Raises:
            PeerFailed: one of them says that its sender stopped with an error.
        """
        self._listen()
        self._refuse_failed()

    def _listen(self) -> bool:
        """Take in the notices that have come. Return whether a rank has failed."""
        for notice in self._transport.notices():
            if notice.failed:
                self._failure = self._failure or notice
            else:
                self.finished[notice.sender] = notice
        return self._failure is not None

    def _refuse_failed(self) -> None:
        notice, self._failure = self._failure, None
        if notice is not None:
            sender = self._name(notice.sender)
            raise PeerFailed(
                f"rank {self._me}: rank {sender} stopped: {notice.reason}. See what rank {sender} printed: this rank "
                "stops because of it"
            )

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
                    f"rank {self._me}: rank {self._name(notice.sender)} finished after {notice.rounds} rounds, while "
                    f"this rank waits for {ticket.what}{_in_round(round, ' in')}. Every rank must take the same number "
                    "of steps and make the same collective calls: give all ranks the same number of batches "
                    "(DistributedSampler with drop_last=True), and do not break out of the loop on some ranks only"
                )

    def _alone(self) -> AbstractContextManager[None]:
        return self._transport.alone() if isinstance(self._transport, Transport) else contextlib.nullcontext()

    def _roll_call(self, ticket: Ticket, round: int) -> Waiting | None:
        progress = self._transport.progress
        if progress is None:
            return None
        call = current_call(ticket.what) + _in_round(round, " in")
        return Waiting(progress.roll, self._me, lambda rank: self._name(progress.ranks.index(rank)), call)

    def _needs(self, pending: Iterable[Ticket], round: int) -> list[Need]:
        progress = self._transport.progress
        assert progress is not None
        found: dict[Need, None] = {}
        for ticket in pending:
            if ticket.peer is None:
                found[progress.collective(ticket.collective)] = None
            elif ticket.peer < 0:
                continue
            elif not self._counts_rounds:
                found[progress.anything(ticket.peer)] = None
            elif round >= 0:
                found[progress.round(round + 1, ticket.peer)] = None
            elif ticket.sends and isinstance(self._transport, Transport):  # taken at the latest in the next meeting
                found[progress.collective(self._transport.collectives + 1, ticket.peer)] = None
        return list(found)

    # ------------------------------------------------------------------ words

    @property
    def _me(self) -> int:
        return self._transport.job_rank()

    def _name(self, rank: int) -> int:
        return self._transport.job_rank(rank)

    def _describe(self, ticket: Ticket, round: int, waiting: Waiting | None) -> str:
        call = current_call()
        inside = f" (in {call})" if call and call != ticket.what else ""
        return self._who(ticket, waiting) + _in_round(round, ",") + inside

    def _who(self, ticket: Ticket, waiting: Waiting | None) -> str:
        if ticket.peer is not None:
            return f"rank {self._name(ticket.peer)}: {ticket.what}"
        progress = self._transport.progress
        missing = waiting.missing(progress.collective(ticket.collective)) if waiting is not None and progress else []
        text = f"{ticket.what}, a collective call that not every rank has made"
        if not missing:
            return text
        shown = ", ".join(map(str, missing[:8])) + (f", ... ({len(missing)} in all)" if len(missing) > 8 else "")
        return f"{text} (nothing was heard from rank{'s' if len(missing) > 1 else ''} {shown} there)"

    def _timeout_message(self, ticket: Ticket, round: int, seconds: float, waiting: Waiting | None) -> str:
        chain = f" {found}." if (found := _chain(waiting)) else ""
        return (
            f"rank {self._me}: waited {seconds:.1f} s for {self._describe(ticket, round, waiting)}, and nothing came."
            f"{chain} Likely causes: that rank skipped a step() or a collective call, hangs, is much slower than this "
            "one, or its host or network is gone. Look at its stack (py-spy dump --pid ...), make sure that every rank "
            f"calls step() equally often, or give more time with timeout= (now {self._timeout:g} s)"
        )


def _chain(waiting: Waiting | None) -> str:
    return "" if waiting is None else waiting.sentence()


def _peer(ticket: Ticket) -> int | None:
    return None if ticket.peer is None or ticket.peer < 0 else ticket.peer


def _in_round(round: int, before: str) -> str:
    return f"{before} round {round}" if round >= 0 else ""
