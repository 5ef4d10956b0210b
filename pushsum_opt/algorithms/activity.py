"""Which ranks still have batches, in a block in which they run out of them at different times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..channel.meeting import Meeting
from ..push_sum import Follower, PushSum
from ..transport import Ticket

__all__ = ["Activity"]

NAP_S = 0.01
"""How long an asynchronous rank without batches waits for messages between two rounds."""


class Activity(Follower):
    """Counts the ranks that have batches, where they are in step; waits for all to come, where they are not.

    A count is begun in one round and its result is read when the next one begins. When ranks are lost, survivors that
    have a result tell it to those that wait for it, and a count of which nobody has the result is begun again among the
    survivors.
    """

    def __init__(self, push_sum: PushSum) -> None:
        self._push_sum = push_sum
        self.here = True
        """Whether this rank has batches."""
        self._active = self._of = float(push_sum.participants)
        self._begun = 0  # how many counts
        self._known: tuple[int, float, float] | None = (
            None  # the last count whose result is known here, and of how many
        )
        self._count: tuple[Ticket, Any] | None = None
        self._everyone: Meeting | None = None
        self._all_here = False

    @property
    def scale(self) -> float:
        """n over the sum of a_i over the ranks that have batches, as last counted."""
        return self._of / self._active if self._active else 1.0

    @property
    def none(self) -> bool:
        """Whether no rank has batches, as last counted."""
        return not self._active

    # ------------------------------------------------------------------ ranks in step

    def count(self) -> None:
        """Take the result of the last count, and begin the next. All ranks do it in the same round."""
        push_sum = self._push_sum
        if push_sum.size == 1 and not push_sum.losses:
            return
        with push_sum.member.lifetime.failing_together():
            if self._begun:
                self._take()
            if self._active:
                self._begun += 1
                push_sum.member.survival.once(self._begin)

    def _take(self) -> None:
        while self._known is None or self._known[0] < self._begun:
            self._push_sum.member.survival.once(self._wait)
        _, self._active, self._of = self._known

    def _wait(self) -> None:
        assert self._count is not None
        ticket, total = self._count
        self._push_sum.member.place.channel.wait((ticket,), self._push_sum.round)
        self._known = self._begun, float(total[0]), float(self._push_sum.participants)

    def _begin(self) -> None:
        total = np.array([self._push_sum.initial_weight if self.here else 0.0])
        self._count = self._push_sum.member.place.transport.sum(total, "a count of the ranks with batches"), total

    # ------------------------------------------------------------------ ranks that are not in step

    def await_all(self) -> None:
        """From now on this rank waits for all others to have no batches left."""
        self.here = False
        with self._push_sum.member.lifetime.failing_together():
            self._push_sum.member.survival.once(self._meet)

    def _meet(self) -> None:
        self._everyone = Meeting(self._push_sum.member.place.transport, "the end of join()", -1)

    def all_have_come(self) -> bool:
        """Tell whether all ranks are here; if not, wait a moment for messages."""
        with self._push_sum.member.lifetime.failing_together():
            self._push_sum.member.survival.once(self._look)
        return self._all_here

    def _look(self) -> None:
        if self._all_here:  # other survivors said so
            return
        assert self._everyone is not None
        if not self._everyone.ticket.done:
            self._push_sum.member.place.transport.poll(NAP_S)
            self._push_sum.member.place.channel.hear()
        if self._everyone.ticket.done:
            self._everyone.check()
            self._all_here = True

    # ------------------------------------------------------------------ when ranks have died

    def report(self) -> Any:
        return {"known": self._known, "all here": self._all_here}

    def settle(self, reports: Sequence[Any]) -> None:
        self._all_here = any(report["all here"] for report in reports)
        for report in reports:
            known = report["known"]
            if known is not None and known[0] == self._begun:
                self._known = known[0], known[1], known[2]

    def rejoin(self) -> None:
        self._count = None
        if self._begun and (self._known is None or self._known[0] < self._begun):
            self._begin()
        if self._everyone is not None and not self._all_here:
            self._meet()
