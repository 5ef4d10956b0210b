"""Votes: ranks find out what the others want, while training goes on.

A vote is an all-reduce that is begun now and read later. So nobody waits for it, unless ranks are far apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
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

    take_in: int = 0
    """How many know of spares that can take the places of lost ranks."""

    voters: int = 0

    @property
    def takes_in(self) -> bool:
        """Whether all ranks take in the spares that are ready: none of them has finished."""
        return bool(self.take_in) and not self.finished

    @property
    def all_finished(self) -> bool:
        """Whether no rank takes further steps."""
        return self.finished == self.voters


class Votes:
    """One vote after another. A rank casts the next vote only when it has taken the tally of the last one.

    Ranks in step take a tally after the same number of steps, and wait for it if necessary: so they act in the same
    round. Asynchronous ranks never wait. Their numbers of steps differ, and so does the order of their other collective
    calls. Therefore votes have a channel of their own, over all ranks of the job.

    When ranks are lost, survivors that have the tally of a vote tell it to those that wait for it: so all act on it, or
    none. A vote of which no survivor has the tally is cast again, without the lost ones.
    """

    def __init__(self, push_sum: PushSum) -> None:
        self._push_sum = push_sum
        self.in_step = push_sum.staleness != "unbounded"
        self._events = Events()
        self._events.subscribe(StallInspector(push_sum.rank))
        self._events.subscribe(push_sum.member.listeners)
        self._channel = self._open_channel()
        self.closed = False
        self._wishes: list[bool] = []
        self._values: Any = None
        self._ticket: Ticket | None = None
        self._round = 0
        self._cast = self._taken = 0  # how many votes
        self._known: tuple[int, Tally] | None = None  # the last one whose tally is known here
        self._finishing = False

    def _open_channel(self) -> Channel:
        push_sum = self._push_sum
        return Channel.open(push_sum.comm, self._events, timeout=push_sum.member.options.timeout)

    def cast(
        self,
        *,
        stop: bool,
        save: bool = False,
        finished: bool = False,
        keep: bool = False,
        take_in: bool = False,
    ) -> None:
        """Begin a vote. Collective, but returns at once."""
        self._round = self._push_sum.round
        self._wishes = [stop, save, finished, keep, take_in]
        self._cast += 1
        self._push_sum.member.survival.once(self._begin)

    def _begin(self) -> None:
        self._values = np.array(self._wishes, np.float64)
        self._ticket = self._channel.transport.sum(self._values, "a vote on whether to save")

    @property
    def started_as(self) -> int:
        """The number of this rank when the job was started."""
        return self._push_sum.member.started_as

    @property
    def open(self) -> bool:
        """Whether a vote was cast whose tally was not taken."""
        return self._taken < self._cast

    @property
    def _decided(self) -> bool:
        return self._known is not None and self._known[0] == self._cast

    def take(self) -> Tally | None:
        """Return the tally of the open vote; in step, wait for it; otherwise None while some rank has not voted."""
        if not self.open:
            return None
        if self.in_step:
            return self.wait(patient=False)
        if not self._decided:
            self._push_sum.member.survival.once(self._look)
        return self._tally() if self._decided else None

    def _look(self) -> None:
        assert self._ticket is not None
        if not self._ticket.done:
            self._channel.transport.poll(0.0)
        if self._ticket.done:
            self._note()

    def wait(self, *, patient: bool) -> Tally:
        """Wait for the tally of the open vote, and return it.

        Args:
            patient: wait however long the slowest rank takes.
        """
        while not self._decided:
            self._push_sum.member.survival.once(partial(self._wait, patient))
        return self._tally()

    def _wait(self, patient: bool) -> None:
        assert self._ticket is not None
        ticket = self._ticket

        def left() -> list[Ticket]:
            # A rank says that it has failed, or finished, on the channel of the messages.
            self._push_sum.member.place.transport.poll(0.0)
            self._push_sum.member.place.channel.hear()
            if self.in_step and not ticket.done:
                self._refuse_finished()
            return [] if ticket.done else [ticket]

        with self._push_sum.member.lifetime.failing_together(), calling("Saver.after_step()"):
            self._channel.wait_while(left, self._push_sum.round, patient=patient)
        self._note()

    def finish(self, *, together: bool) -> None:
        """End the votes of ranks in step: wait for an open one. After a loss it goes on where it was.

        Args:
            together: wait until every rank is here, too: what is in memory is of use until all have finished.
        """
        if self.open and not self._finishing:
            self.wait(patient=False)
        if together and not self._finishing:
            self._finishing = True
            self.cast(stop=False, finished=True)
        if self.open:
            self.wait(patient=True)

    def _refuse_finished(self) -> None:
        for notice in self._push_sum.member.place.channel.finished.values():
            if notice.rounds < self._round:
                sender = self._push_sum.member.place.channel.job_rank(notice.sender)
                raise PeerFinished(
                    f"rank {self._push_sum.rank}: rank {sender} finished after {notice.rounds} rounds, while "
                    f"this rank is in round {self._push_sum.round} and waits for it to say whether to save. Every rank "
                    "must take the same number of steps, and call after_step() after each"
                )

    def _note(self) -> None:
        self._ticket = None
        self._known = self._cast, Tally(*(int(value) for value in (*self._values, self._channel.size)))

    def _tally(self) -> Tally:
        assert self._known is not None
        self._taken = self._cast
        return self._known[1]

    # ------------------------------------------------------------------ when ranks have died

    def report(self) -> Any:
        """Return what other survivors need: the last vote whose tally is known here, and whether votes go on."""
        known = None if self._known is None else [self._known[0], *vars(self._known[1]).values()]
        return {"known": known, "closed": self.closed, "cast": self._cast, "taken": self._taken}

    def join(self, report: Any) -> None:
        """Take part, as a newcomer, in the votes of others, from the open one on; without a wish in that.

        Args:
            report: of one of them.
        """
        self._cast, self._taken, self._known = report["cast"], report["taken"], None
        self._wishes = [False] * 5

    def settle(self, reports: Sequence[Any], *, keep: bool) -> None:
        """Take over the tally of this rank's open vote from survivors that know it.

        Args:
            keep: False: save nothing to memory because of it.
        """
        self._over = any(report["closed"] for report in reports)
        for report in reports:
            if self.open and not self._decided and report["known"] and report["known"][0] == self._cast:
                self._known = self._cast, Tally(*report["known"][1:])
        if self.open and self._decided and not keep:
            assert self._known is not None
            self._known = self._cast, replace(self._known[1], keep=0)

    def rejoin(self) -> None:
        """Collective. Vote among the survivors from now on; cast again a vote of which no survivor has the tally."""
        self._ticket = None
        self._channel.close()
        if self._over:  # on some survivor votes have ended: all have the last tally now
            return
        self._channel = self._open_channel()
        if self.open and not self._decided:
            self._begin()

    def close(self) -> None:
        """Free the channel."""
        self.closed = True
        self._channel.close()
