"""Lets ranks run out of batches at different times."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType

from .. import combinations
from ..push_sum import Follower, PushSum, rounds
from ..transport import calling
from .activity import Activity

__all__ = ["Join"]

ROUNDS_BETWEEN_COUNTS = 8
"""The ranks that still have batches are counted so often; a count has as many rounds to arrive."""


class Join:
    """A block in which ranks take different numbers of steps.

    A rank that leaves the block goes on gossiping, without updates of its own, until the last rank has left. So its
    mass keeps moving, and no rank waits for it in vain. Afterwards all ranks are in the same round again (unless
    asynchronous). Every sample counts gamma / n as before, gamma being the learning rate: the mean over ranks moves by
    a_i dz / n for each step that a rank takes.

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
        self._activity = Activity(push_sum)

    @property
    def scale(self) -> float:
        """What local steps are multiplied by."""
        return self._activity.scale if self._divide else 1.0

    def __enter__(self) -> Join:
        member = self._push_sum.member
        member.survival.together(
            partial(rounds.meet, member, "join()"), commit=lambda _: _follow(member.followers, self._activity)
        )
        self._apart = member.lifetime.apart("join()")
        self._apart.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and (self._push_sum.size > 1 or self._push_sum.losses):
                if self._in_step:
                    self._gossip_in_step_until_all_done()
                else:
                    self._gossip_freely_until_all_done()
        finally:
            self._apart.__exit__(None, None, None)

    def _gossip_in_step_until_all_done(self) -> None:
        """Gossip round by round until no rank has batches."""
        self._activity.here = False
        while True:
            self.round_begins()
            if self._activity.none:
                return
            self._round()

    def _gossip_freely_until_all_done(self) -> None:
        """Gossip until every rank has left the block."""
        self._activity.await_all()
        while not self._activity.all_have_come():
            self._round()

    def round_begins(self) -> None:
        """Count the ranks that have batches, if that is due. Every rank calls this before each round in the block."""
        if self._in_step and self._push_sum.round % ROUNDS_BETWEEN_COUNTS == 0:
            with calling("step()" if self._activity.here else "the end of join()"):
                self._activity.count()


def _follow(followers: list[Follower], activity: Activity) -> None:
    """Put it in the place of that of an earlier block: all ranks have left that."""
    followers[:] = [one for one in followers if not isinstance(one, Activity)]
    followers.append(activity)
