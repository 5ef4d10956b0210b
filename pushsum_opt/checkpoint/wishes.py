"""When a rank saves, and when all stop: what this rank wants, and what all have decided by votes."""

from __future__ import annotations

from ..push_sum import PushSum
from ..push_sum.inviting import can_take_in
from .in_memory import InMemory
from .signals import Signals
from .votes import Tally, Votes

__all__ = ["Wishes"]


class Wishes:
    """What a :class:`~pushsum_opt.checkpoint.Saver` asks after each step.

    Args:
        memory: None where nothing is saved to memory.
        every, check_every: as for the Saver.
        signals: that ask for an end.
    """

    def __init__(
        self,
        push_sum: PushSum,
        votes: Votes,
        memory: InMemory | None,
        every: int | None,
        check_every: int,
        signals: Signals,
    ) -> None:
        self._push_sum = push_sum
        self._votes = votes
        self._memory = memory
        self._every = every
        self._check_every = check_every
        self._signals = signals
        self._asked = False
        self.steps = 0
        """How many this rank has taken; votes are after the same ones on every rank."""
        self.saved_round = push_sum.round
        """The round of the newest checkpoint."""

    def request_stop(self) -> None:
        """This rank wants to stop, as if it had got a signal."""
        self._asked = True

    @property
    def save_is_due(self) -> bool:
        """Whether it is time to save to disk."""
        round = self._push_sum.round
        if self._every is None or round == self.saved_round:
            return False
        if self._votes.in_step:
            return round // self._every > self.saved_round // self._every
        return round - self.saved_round >= self._every

    @property
    def keep_is_due(self) -> bool:
        """Whether it is time to save to memory."""
        return self._memory is not None and self._memory.due

    def after_step(self, due: bool) -> Tally | None:
        """Take the tally of the last vote, and cast the next one, where this step is one for that.

        Args:
            due: whether this rank is to save to disk now.
        """
        self.steps += 1
        if self.steps % self._check_every:
            return None
        tally = self._counted(self._votes.take())
        if not self._votes.open and not (tally and tally.stop):
            # Ranks in step know by themselves when to save. A wish that was just fulfilled is not repeated.
            alone = not self._votes.in_step
            wish = alone and due and not (tally and tally.save)
            keep = alone and self.keep_is_due and not (tally and (tally.keep or tally.save))
            take = not (tally and tally.takes_in) and can_take_in(self._push_sum.member.survival)
            self._cast(stop=self._wants_stop, save=wish, keep=keep, take_in=take)
        return tally

    def after_the_last_step(self) -> Tally:
        """Wait for the tally of the next vote of asynchronous ranks, as one that has finished."""
        if not self._votes.open:
            self._cast(stop=self._wants_stop, finished=True)
        tally = self._votes.wait(patient=True)
        self._counted(tally)
        return tally

    @property
    def _wants_stop(self) -> bool:
        return self._asked or self._signals.received is not None

    def _cast(self, **wishes: bool) -> None:
        if self._memory is not None:
            self._memory.vote_cast()
        self._votes.cast(**wishes)

    def _counted(self, tally: Tally | None) -> Tally | None:
        if tally is not None and self._memory is not None:
            self._memory.vote_counted()
        return tally
