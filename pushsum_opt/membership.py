"""One rank among the others: when it fails they are told at once, and it leaves together with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from . import world
from .errors import ClosedError
from .hosts import Hosts
from .interrupts import is_interrupt
from .transport import Notice, Transport
from .transport.waiting import Waiter

__all__ = ["JOINING", "MERGING", "WHOLE", "Membership"]

WHOLE = "Its own tensors are whole: what they were before that call or, if it was nearly over, what they are after it"
MERGING = (
    "Of its own tensors some parts may hold what was merged in that call and others not yet: a model that works, and "
    "no mean"
)
JOINING = "Of the tensors that were added some may hold rank 0's values and others not yet; all others are whole"


class Membership:
    """Whether a rank still takes part, and what it tells its partners when it no longer does.

    Args:
        partners: every rank that this one ever gives to or takes from.
        hosts: the other ranks of its host, where they are one participant; they are told too.

    ``round``, below, is always the number of rounds that this rank has completed; in :meth:`failing_together`, when
    the context begins.
    """

    def __init__(
        self, transport: Transport, waiter: Waiter, partners: Collection[int], hosts: Hosts | None
    ) -> None:
        self._transport = transport
        self._waiter = waiter
        self._partners = frozenset(partners)
        self._hosts = hosts
        self.failure: str | None = None
        """The error that ended the exchange, if one has."""
        self._left = WHOLE
        self.interrupted = False
        """Whether that error was no fault of anything here: Ctrl-C, or sys.exit() in a signal handler."""
        self.successor = False
        """Whether a newer one has taken its place."""
        self.closed = False
        self._forks = world.forks()

    @property
    def alone(self) -> bool:
        """Whether there is no other rank that could be out of step after an error."""
        return self._transport.size == 1 and (self._hosts is None or self._hosts.lanes == 1)

    @property
    def forked(self) -> bool:
        """Whether this is a forked child: then nothing here belongs to it."""
        return world.forks() != self._forks

    @contextmanager
    def failing_together(self, round: int, left: str = WHOLE, *, only_interrupts: bool = False) -> Iterator[None]:
        """Tell the other ranks when this one fails, and refuse to go on afterwards.

        One rank alone goes on after an interrupt: there is nobody with whom it could be out of step.

        Args:
            left: what an interrupt inside leaves of the tensors.
            only_interrupts: errors are none of this context's business: all ranks raise them alike.
        """
        try:
            yield
        except BaseException as error:
            interrupt = is_interrupt(error)
            if not (self.alone and interrupt) and (interrupt or not only_interrupts):
                self.fail(error, round, left)
            raise

    def fail(self, error: BaseException, round: int, left: str = WHOLE) -> None:
        if self.failure is not None or self.forked:
            return
        self.failure = _reason(error)
        self._left = left
        self.interrupted = is_interrupt(error)
        notice = Notice(self._transport.rank, True, round, self._transport.collectives, self.failure)
        with contextlib.suppress(Exception):  # at best effort: the error at hand is the one to raise
            self._transport.tell(self._partners, notice)
            self._transport.poll(0.0)
            if self._hosts is not None:
                self._hosts.tell(notice)

    def refuse_if_over(self, round: int) -> None:
        """Raise ClosedError after the end, whether in peace or by an error."""
        rank = self._transport.rank
        if self.forked:
            raise ClosedError(
                f"rank {rank}, round {round}: called in process {os.getpid()}, which was made by a fork of the rank's "
                "own process (os.fork, a DataLoader or multiprocessing worker). The rank's messages and threads do not "
                "exist here. Make this call in the rank's own process"
            )
        if self.closed and self.successor:
            raise ClosedError(
                f"rank {rank}: closed, because another optimizer was made over the same parameters after round {round} "
                "and took its place. Use that one"
            )
        if self.closed:
            raise ClosedError(f"rank {rank}: already closed. Make a new one to exchange again")
        if self.failure is not None and self.interrupted:
            raise ClosedError(
                f"rank {rank}: an interrupt ended the exchange in round {round} ({self.failure}): this rank left what "
                f"all ranks do together half-way, and the others have stopped. {self._left}. state_dict() works. Make "
                "a new optimizer on every rank, which starts from rank 0's parameters, or restart from a checkpoint. "
                "To stop a run so that it can go on, use checkpoint.Saver and SIGUSR1"
            )
        if self.failure is not None:
            raise ClosedError(
                f"rank {rank}: an earlier error ended the exchange in round {round} ({self.failure}). "
                "The ranks no longer agree on what was merged: restart from a checkpoint"
            )
        self._transport.refuse_if_stopped()

    def leave(self, round: int, bring_home: Callable[[], None]) -> None:
        """Collective. Part from the others in peace.

        Args:
            bring_home: merges every message in flight, once the others know that this rank gives no more.
        """
        # First say so: from now on nobody waits for this rank, or gives to it.
        mine = Notice(self._transport.rank, failed=False, rounds=round, collectives=self._transport.collectives)
        self._transport.tell(self._partners, mine)
        self._waiter.closing = True
        bring_home()
        self._waiter.wait((self._transport.barrier("everyone to close"),), round)
        # Each partner has told us as we have told it: take it in, so that nothing is left on the wire.
        while not self._partners <= self._waiter.finished.keys():
            self._transport.poll(1.0)
            self._waiter.hear()
        if self._hosts is not None:
            self._hosts.tell(mine)
            self._hosts.leave(round)


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "KeyboardInterrupt: interrupted, by Ctrl-C or the stop button of a notebook"
    return f"{type(error).__name__}: {error}"
