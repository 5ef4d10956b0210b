"""When a rank that waits over torch.distributed looks whether another one has died."""

from __future__ import annotations

import time

__all__ = ["Looks"]

FIRST_AFTER_S = 0.25
EVERY_S = 30.0
"""The first look comes after the first of these times, each next one after twice the time, but never later than the
second says. Each look costs some bytes for every rank that is awaited."""


class Looks:
    """The looks of one wait."""

    def __init__(self) -> None:
        self._at = self._after = 0.0

    def restart(self) -> None:
        """Something has come: what follows is another wait."""
        self._at = 0.0

    def due(self) -> bool:
        """Tell whether it is time to look. The first call is the beginning of the wait."""
        now = time.monotonic()
        if not self._at:
            self._after = FIRST_AFTER_S
        elif now < self._at:
            return False
        else:
            self._after = min(EVERY_S, 2 * self._after)
        due, self._at = bool(self._at), now + self._after
        return due
