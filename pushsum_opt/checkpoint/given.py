"""What a rank has given and nobody has merged yet: known to the giver alone, without a wait."""

from __future__ import annotations

from ..observe.events import Listener
from ..push_sum import PushSum

__all__ = ["Given"]

KEPT = 8
"""Rounds beside the staleness whose masses are remembered."""


class Given(Listener):
    """Remembers the masses that this rank gave in its latest rounds.

    A checkpoint in memory does not wait for messages that are in flight to a rank. Their senders take them back in
    place: a sender's w then counts the mass, at its present z. So the masses of all parts sum to n, and no message is
    copied. In step, what is in flight is known: the messages of the rounds that all ranks have yet to merge.

    Args:
        push_sum: subscribed to from now on.
    """

    def __init__(self, push_sum: PushSum) -> None:
        self._member = push_sum.member
        self._masses: dict[int, float] = {}
        self._since = push_sum.round
        self._next = push_sum.round
        push_sum.subscribe(self)

    def round_begins(self, round: int) -> None:
        if round != self._next:  # another state was loaded
            self.forget(round)
        self._next = round + 1
        staleness = self._member.options.staleness
        oldest = round - KEPT - (staleness if isinstance(staleness, int) else 0)
        self._masses = {k: mass for k, mass in self._masses.items() if k >= oldest}

    def message_posted(self, round: int, peer: int, nbytes: int, mass: float) -> None:
        self._masses[round] = self._masses.get(round, 0.0) + mass

    def forget(self, round: int) -> None:
        """Know only what is given from this round on."""
        self._masses = {}
        self._since = self._next = round

    def in_flight(self) -> float | None:
        """Return the mass that this rank has given and nobody has merged; 0 for ranks that are not in step.

        None where messages are in flight that were sent before this listened: the same on all ranks in step.
        """
        rounds = self._member.mode.rounds_in_flight()
        if any(k < self._since for k in rounds):
            return None
        return sum(self._masses.get(k, 0.0) for k in rounds)
