"""Logs once what overlap would gain, where synchronous rounds wait for much of the time."""

from __future__ import annotations

from ..clock import Clock, monotonic
from ..log import log
from .events import Listener

__all__ = ["OverlapAdvice"]

WARM_UP_ROUNDS = 10
"""The first rounds are not counted: they allocate memory and open connections."""
MEASURED_ROUNDS = 100
WORTH_SAYING_FRACTION = 0.1
"""Of the time: where less is spent in waiting, nothing is logged."""


class OverlapAdvice(Listener):
    """Measures how much of a rank's time its synchronous rounds wait, and logs a line if it is a tenth or more.

    Waits outside rounds (averages, checkpoints) are not counted, because overlap would not shorten them.
    """

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._rounds = 0
        self._in_round = False
        self._begin = 0.0
        self._seconds_waited = 0.0

    def round_begins(self, round: int) -> None:
        self._in_round = True

    def waited(self, seconds: float) -> None:
        if self._in_round and self._rounds >= WARM_UP_ROUNDS:
            self._seconds_waited += seconds

    def round_ends(self, round: int, push_weight: float) -> None:
        self._in_round = False
        self._rounds += 1
        if self._rounds == WARM_UP_ROUNDS:
            self._begin = self._clock()
        elif self._rounds == WARM_UP_ROUNDS + MEASURED_ROUNDS:
            self._say(self._clock() - self._begin)

    def _say(self, seconds: float) -> None:
        part = self._seconds_waited / seconds if seconds > 0 else 0.0
        if part >= WORTH_SAYING_FRACTION:
            log.info(
                "rank 0 waited for messages during %.0f %% of its last %d steps. With staleness=1 they move while the "
                "rank computes: a step would take down to %.2f times this time, and needs one copy of the model for "
                "each message in flight",
                100 * part,
                MEASURED_ROUNDS,
                1 - part,
            )
