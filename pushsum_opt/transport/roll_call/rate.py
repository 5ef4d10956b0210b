"""How often something may be done that others would feel if it were done all the time."""

from __future__ import annotations

__all__ = ["Rate"]


class Rate:
    """Allows so many things in a second, and so many at once after a pause."""

    def __init__(self, per_second: float, at_once: float) -> None:
        self._per_second, self._at_once = per_second, at_once
        self._left, self._when = at_once, 0.0

    def take(self, now: float) -> bool:
        """Tell whether one more is allowed now, and count it.

        >>> rate = Rate(per_second=1.0, at_once=2.0)
        >>> [rate.take(now) for now in (10.0, 10.0, 10.5, 11.0, 11.5)]
        [True, True, False, True, False]
        """
        self._left = min(self._at_once, self._left + self._per_second * (now - self._when))
        self._when = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
