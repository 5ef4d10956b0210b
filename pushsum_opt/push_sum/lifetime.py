"""From construction to the end: what a rank may call when, whom it tells when it fails, and how all ranks end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from ..channel import Channel
from ..errors import CallOrderError, ClosedError, RanksLost
from ..hosts import Participant
from ..interrupts import is_interrupt
from ..job import ending, joined
from ..transport.calls import current_call

__all__ = ["JOINING", "MERGING", "WHOLE", "Lifetime"]

WHOLE = "Its own tensors are whole: what they were before that call or, if it was nearly over, what they are after it"
MERGING = (
    "Of its own tensors some parts may hold what was merged in that call and others not yet: a model that works, and "
    "no mean"
)
JOINING = "Of the tensors that were added some may hold rank 0's values and others not yet; all others are whole"


class Lifetime:
    """Whether a rank still takes part, and what it tells its partners when it no longer does.

    Args:
        channel: over all participants.
        partners: every participant that this one ever gives to or takes from.
        participant: whose other ranks are told too.
        round: gives the number of rounds that this rank has completed.
        survives: it is no failure when other ranks have died.
    """

    def __init__(
        self,
        channel: Channel,
        partners: Collection[int],
        participant: Participant,
        round: Callable[[], int],
        *,
        survives: bool = False,
    ) -> None:
        self._round = round
        self._survives = survives
        self.move(channel, partners, participant)
        self.on_loan: str | None = None
        """The block in which the tensors hold other values for a while, such as "averaged()"; None outside of one."""
        self.out_of_step: str | None = None
        """The block in which ranks take different numbers of steps, such as "join()"; None outside of one."""
        self.failure: str | None = None
        """The error that ended the exchange, if one has."""
        self._left = WHOLE
        self.interrupted = False
        """Whether that error was no fault of anything here: Ctrl-C, or sys.exit() in a signal handler."""
        self.successor = False
        """Whether a newer one has taken its place."""
        self.closed = False
        self._forks = joined.forks()

    def move(self, channel: Channel, partners: Collection[int], participant: Participant) -> None:
        """Go on among other ranks, as after a loss."""
        self._channel = channel
        self._partners = frozenset(partners)
        self._participant = participant

    @property
    def alone(self) -> bool:
        """Whether there is no other rank that could be out of step after an error."""
        return self._participant.size == 1

    @property
    def forked(self) -> bool:
        """Whether this is a forked child: then nothing here belongs to it."""
        return joined.forks() != self._forks

    @contextmanager
    def failing_together(self, left: str = WHOLE, *, only_interrupts: bool = False) -> Iterator[None]:
        """Tell the other ranks when this one fails, and refuse to go on afterwards.

        After an interrupt, one rank alone can go on: there is no other rank with which it could be out of step.

        Args:
            left: what an interrupt inside leaves of the tensors.
            only_interrupts: do nothing at other errors, because all ranks raise those themselves.
        """
        round = self._round()
        try:
            yield
        except BaseException as error:
            if self._survives and isinstance(error, RanksLost):
                raise
            interrupt = is_interrupt(error)
            if not (self.alone and interrupt) and (interrupt or not only_interrupts):
                self.fail(error, round, left)
            raise

    def fail(self, error: BaseException, round: int, left: str = WHOLE) -> None:
        """Tell the other ranks that this one cannot go on, and why.

        Where survivors go on, they are not told of an error that concerns this rank alone.

        Args:
            round: the number of rounds that it has completed.
        """
        if self.failure is not None or self.forked:
            return
        self.failure = _reason(error)
        self._left = left
        self.interrupted = is_interrupt(error)
        if self._survives and not self.interrupted and ending.is_of_one_rank(error):
            return
        # One of these may fail too, as after an error of the thread that moves messages. Then all others still hear of
        # it, and the error at hand is still the one to raise.
        with contextlib.suppress(Exception):
            self._channel.tell(self._partners, failed=True, rounds=round, reason=self.failure)
        with contextlib.suppress(Exception):
            self._participant.tell(failed=True, rounds=round, reason=self.failure)
        with contextlib.suppress(Exception):
            self._channel.transport.poll(0.0)

    def refuse_if_over(self) -> None:
        """Raise ClosedError after close(), or after an error."""
        rank, round = self._participant.rank, self._round()
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
        self._channel.transport.refuse_if_stopped()

    def leave(self, merge_in_flight: Callable[[], None]) -> None:
        """Collective. End without an error.

        Args:
            merge_in_flight: called once the others know that this rank gives no more.
        """
        round = self._round()
        # Tell them first: from now on no rank waits for this one, or gives to it.
        self._channel.tell(self._partners, failed=False, rounds=round)
        self._channel.finish()
        merge_in_flight()
        self._channel.barrier("everyone to close", round=round)
        self._channel.hear_all_finish(self._partners)
        self._participant.tell(failed=False, rounds=round)
        self._participant.leave(round)

    # ------------------------------------------------------------------ what may be called when

    @contextmanager
    def lent(self, block: str) -> Iterator[None]:
        """Inside, the tensors hold other values: rounds and steps are refused.

        Args:
            block: what the user's code calls it, such as "averaged()".
        """
        before, self.on_loan = self.on_loan, block
        try:
            yield
        finally:
            self.on_loan = before

    @contextmanager
    def apart(self, block: str) -> Iterator[None]:
        """Inside, ranks take different numbers of steps: collective calls are refused."""
        self.out_of_step = block
        try:
            yield
        finally:
            self.out_of_step = None

    def refuse_if_on_loan(self, call: str) -> None:
        """Raise CallOrderError inside :meth:`lent`, and ClosedError after the end."""
        self.refuse_if_over()
        if self.on_loan is not None:
            raise CallOrderError(
                f"rank {self._participant.rank}, round {self._round()}: {current_call(call)} inside {self.on_loan}: "
                "the tensors hold the average over ranks there, and what is done to them is undone at its end. Leave "
                "the block first"
            )

    def refuse_out_of_step(self, call: str) -> None:
        """Raise CallOrderError inside :meth:`apart`, and ClosedError after the end."""
        self.refuse_if_over()
        if self.out_of_step is not None:
            raise CallOrderError(
                f"rank {self._participant.rank}, round {self._round()}: {call} inside {self.out_of_step}: a collective "
                "call, and ranks are in different steps there. Make it after the block, on every rank"
            )


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "KeyboardInterrupt: interrupted, by Ctrl-C or the stop button of a notebook"
    return f"{type(error).__name__}: {error}"
