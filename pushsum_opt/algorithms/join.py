"""Lets ranks run out of batches at different times."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from .. import combinations
from ..channel.meeting import Meeting
from ..push_sum import PushSum, rounds
from ..transport import Ticket, calling

__all__ = ["Join"]

EVERY = 8  # rounds between counts of the ranks that still have batches; a count has as many rounds to arrive
NAP = 0.01  # seconds for which an asynchronous rank without batches waits for messages between its rounds


class Join:
    """A block in which ranks take different numbers of steps.

    A rank that leaves it goes on gossiping without updates of its own, so its mass keeps moving and nobody waits in
    vain, until the last rank has left. Then all ranks are in the same round again (unless asynchronous). Every sample
    counts gamma / n as before, since the mean over ranks moves by a_i dz / n for each step that a rank takes.

    In step, all ranks count every few rounds who still has batches, by a collective that is waited for only when
    the next count begins: nobody waits for the slowest rank in every round, and all learn of the end in the same one.

    Args:
        push_sum: what is mixed.
        round: does a round, ``push_sum.round`` of them so far.
        divide_by_active: scale local steps by n over the data weights of the ranks that still have batches, as the last
            count found them: each sample then counts gamma / n_active.

    Raises:
        ConfigurationError: ``divide_by_active`` where ranks are not in step.
    """

    def __init__(self, push_sum: PushSum, round: Callable[[], None], *, divide_by_active: bool) -> None:
        self._in_step = push_sum.staleness != "unbounded"
        combinations.refuse(push_sum.comm, staleness=push_sum.staleness, divide_by_active=divide_by_active)
        self._push_sum = push_sum
        self._round = round
        self._divide = divide_by_active
        self._active = float(push_sum.participants)  # the sum of a_i over the ranks that have batches, as last counted
        self._count: tuple[Ticket, Any] | None = None

    @property
    def scale(self) -> float:
        """What local steps are multiplied by."""
        return self._push_sum.participants / self._active if self._divide and self._active else 1.0

    def __enter__(self) -> Join:
        rounds.meet(self._push_sum.member, "join()")
        self._apart = self._push_sum.member.lifetime.apart("join()")
        self._apart.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._push_sum.size > 1:
                if self._in_step:
                    self._follow()
                else:
                    self._roam()
        finally:
            self._apart.__exit__(None, None, None)

    def _follow(self) -> None:
        """Gossip round by round until no rank has batches."""
        self._active_here = False
        while True:
            self.round_begins()
            if not self._active:
                return
            self._round()

    _active_here = True

    def _roam(self) -> None:
        """Gossip until every rank has left the block."""
        push_sum = self._push_sum
        with push_sum.member.failing_together():
            everyone = Meeting(push_sum.member.transport, "the end of join()", -1)
        while not everyone.ticket.done:
            self._round()
            with push_sum.member.failing_together():
                push_sum.member.transport.poll(NAP)
                push_sum.member.channel.hear()
        with push_sum.member.failing_together():
            everyone.check()

    def round_begins(self) -> None:
        """Count, where a count is due. Every rank calls it before every round within the block."""
        push_sum = self._push_sum
        if not self._in_step or push_sum.size == 1 or push_sum.round % EVERY:
            return
        with push_sum.member.failing_together(), calling("step()" if self._active_here else "the end of join()"):
            if self._count is not None:
                ticket, total = self._count
                push_sum.member.channel.wait((ticket,), push_sum.round)
                self._active = float(total[0])
            if self._active:
                total = np.array([push_sum.initial_weight if self._active_here else 0.0])
                self._count = push_sum.member.transport.sum(total, "a count of the ranks with batches"), total
