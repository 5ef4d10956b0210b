"""How ranks agree on when to save, without waiting: a small all-reduce begins now, and its result is read later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..channel import Channel
from ..errors import PeerFinished
from ..observe.events import Events
from ..observe.stall import StallInspector
from ..push_sum import PushSum
from ..transport import Ticket, calling

__all__ = ["Tally", "Votes"]


@dataclass(frozen=True)
class Tally:
    """The result of a vote: how many ranks wanted what. The same on every rank."""

    stop: int
    save: int
    finished: int
    keep: int = 0
    """How many want to save to memory."""


class Votes:
    """One vote after another. A rank casts the next vote only when it has taken the tally of the last one.

    Ranks in step take a tally after the same number of steps, and wait for it if necessary: so they act in the same
    round. Asynchronous ranks never wait. Their numbers of steps differ, and so does the order of their other collective
    calls. Therefore votes have a channel of their own, over all ranks of the job.
    """

    def __init__(self, push_sum: PushSum) -> None:
        self._push_sum = push_sum
        self.in_step = push_sum.staleness != "unbounded"
        events = Events()
        events.subscribe(StallInspector(push_sum.rank))
        events.subscribe(push_sum.member.listeners)
        self._channel = Channel.open(push_sum.comm, events, timeout=push_sum.member.options.timeout)
        self.rank = push_sum.rank
        self.size = push_sum.size
        self.closed = False
        self._values: Any = None
        self._ticket: Ticket | None = None
        self._round = 0

    def cast(self, *, stop: bool, save: bool = False, finished: bool = False, keep: bool = False) -> None:
        """Begin a vote. Collective, but returns at once."""
        self._round = self._push_sum.round
        self._values = np.array([stop, save, finished, keep], np.float64)
        self._ticket = self._channel.transport.sum(self._values, "a vote on whether to save")

    @property
    def open(self) -> bool:
        """Whether a vote was cast whose tally was not taken."""
        return self._ticket is not None

    def take(self) -> Tally | None:
        """Return the tally of the open vote; in step, wait for it; otherwise None while some rank has not voted."""
        if self._ticket is None:
            return None
        if self.in_step:
            return self.wait(patient=False)
        if not self._ticket.done:
            self._channel.transport.poll(0.0)
        return self._tally() if self._ticket.done else None

    def wait(self, *, patient: bool) -> Tally:
        """Wait for the tally of the open vote, and return it.

        Args:
            patient: wait however long the slowest rank takes.
        """
        assert self._ticket is not None
        ticket = self._ticket

        def left() -> list[Ticket]:
            # A rank says that it has failed, or finished, on the channel of the messages.
            self._push_sum.member.transport.poll(0.0)
            self._push_sum.member.channel.hear()
            if self.in_step and not ticket.done:
                self._refuse_finished()
            return [] if ticket.done else [ticket]

        with self._push_sum.member.failing_together(), calling("Saver.after_step()"):
            self._channel.wait_while(left, self._push_sum.round, patient=patient)
        return self._tally()

    def finish(self, *, together: bool) -> None:
        """End the votes of ranks in step: wait for an open one.

        Args:
            together: wait until every rank is here, too: what is in memory is of use until all have finished.
        """
        if self.open:
            self.wait(patient=False)
        if together:
            self.cast(stop=False, finished=True)
            self.wait(patient=True)

    def _refuse_finished(self) -> None:
        for notice in self._push_sum.member.channel.finished.values():
            if notice.rounds < self._round:
                sender = self._push_sum.member.channel.job_rank(notice.sender)
                raise PeerFinished(
                    f"rank {self._push_sum.rank}: rank {sender} finished after {notice.rounds} rounds, while "
                    f"this rank is in round {self._push_sum.round} and waits for it to say whether to save. Every rank "
                    "must take the same number of steps, and call after_step() after each"
                )

    def _tally(self) -> Tally:
        self._ticket = None
        return Tally(*(int(value) for value in self._values))

    def close(self) -> None:
        """Free the channel."""
        self.closed = True
        self._channel.close()
