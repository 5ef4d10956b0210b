"""Lets slow ranks count as much as fast ones in asynchronous runs."""

from __future__ import annotations

from ..clock import Clock

__all__ = ["Pace"]

KEPT_OF_MEAN = 0.9
"""Weight of the old value in the running mean of a rank's own step time."""
LARGEST_SCALE = 10.0
"""The scale lies between 1 / this and this, so that a single long step cannot enlarge a step too much."""


class Pace:
    """Scales local steps by this rank's step time over the mean step time of all ranks.

    Without it, rank i counts in proportion to its steps per second, and the limit of training is that of a weighted
    objective (Assran and Rabbat 2020, section V). The mean is itself found by push-sum: messages carry the sender's
    estimate, and a change of this rank's own time moves its estimate as a local step moves z.

    Args:
        clock: by which steps are timed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: float | None = None
        self._own: float | None = None
        self.estimate = 0.0
        """Estimated mean over ranks of the seconds per step; 0 until it is known."""

    @property
    def scale(self) -> float:
        """Own step time over the mean: 1 until both are known."""
        if self._own is None or self.estimate <= 0.0:
            return 1.0
        return min(LARGEST_SCALE, max(1.0 / LARGEST_SCALE, self._own / self.estimate))

    def step_done(self, step_weight: float) -> None:
        """Take the time since the last step; ``step_weight`` is a_i / w."""
        now = self._clock()
        if self._last is not None:
            taken = now - self._last
            if self._own is None:
                self._own = self.estimate = taken
            else:
                change = (1.0 - KEPT_OF_MEAN) * (taken - self._own)
                self._own += change
                self.estimate = max(0.0, self.estimate + step_weight * change)
        self._last = now

    def merge(self, estimate: float, fraction: float) -> None:
        """Fold a peer's estimate in, as its parameters are; 0 says that it has none yet."""
        if estimate > 0.0 and self.estimate > 0.0:
            self.estimate += fraction * (estimate - self.estimate)
