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

ROUNDS_BETWEEN_COUNTS = 8
"""The ranks that still have batches are counted so often; a count has as many rounds to arrive."""
NAP_S = 0.01
"""How long an asynchronous rank without batches waits for messages between two rounds."""


class Join:
    """A block in which ranks take different numbers of steps.

    A rank that leaves the block goes on gossiping, without updates of its own, until the last rank has left. So its
    mass keeps moving, and no rank waits for it in vain. Afterwards all ranks are in the same round again (unless
    asynchronous). Every sample counts gamma / n as before, since the mean over ranks moves by a_i dz / n for each step
    that a rank takes.

    Ranks in step count every few rounds which of them still have batches. The count is a collective, and a rank waits
    for its result only when the next count begins. So no round waits for the slowest rank, and all ranks learn of the
    end in the same round.

    Args:
        push_sum: what is mixed.
        round: does one round.
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
        self._active_here = True
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
                    self._gossip_in_step_until_all_done()
                else:
                    self._gossip_freely_until_all_done()
        finally:
            self._apart.__exit__(None, None, None)

    def _gossip_in_step_until_all_done(self) -> None:
        """Gossip round by round until no rank has batches."""
        self._active_here = False
        while True:
            self.round_begins()
            if not self._active:
                return
            self._round()

    def _gossip_freely_until_all_done(self) -> None:
        """Gossip until every rank has left the block."""
        push_sum = self._push_sum
        with push_sum.member.failing_together():
            everyone = Meeting(push_sum.member.transport, "the end of join()", -1)
        while not everyone.ticket.done:
            self._round()
            with push_sum.member.failing_together():
                push_sum.member.transport.poll(NAP_S)
                push_sum.member.channel.hear()
        with push_sum.member.failing_together():
            everyone.check()

    def round_begins(self) -> None:
        """Count the ranks that have batches, if that is due. Every rank calls this before each round in the block."""
        push_sum = self._push_sum
        if not self._in_step or push_sum.size == 1 or push_sum.round % ROUNDS_BETWEEN_COUNTS:
            return
        with push_sum.member.failing_together(), calling("step()" if self._active_here else "the end of join()"):
            if self._count is not None:
                ticket, total = self._count
                push_sum.member.channel.wait((ticket,), push_sum.round)
                self._active = float(total[0])
            if self._active:
                total = np.array([push_sum.initial_weight if self._active_here else 0.0])
                self._count = push_sum.member.transport.sum(total, "a count of the ranks with batches"), total
