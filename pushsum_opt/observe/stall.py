"""Logs, before the timeout, for which peer a stalled rank waits; and which parts of messages were skipped."""

from __future__ import annotations

from ..log import log
from .events import Listener

__all__ = ["StallInspector"]


class StallInspector(Listener):
    """Logs stalls, and values that were not merged because they were not finite."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._skipped = 0

    def stalled(self, seconds: float, what: str) -> None:
        log.warning(
            "rank %d has waited %.1f s for %s. If it stays so: did that rank skip a step(), or a call that all ranks "
            "must make together?",
            self._rank,
            seconds,
            what,
        )

    def chunk_skipped(self, round: int, peer: int, what: str) -> None:
        self._skipped += 1
        if self._skipped & (self._skipped - 1) == 0:  # the 1st, 2nd, 4th, 8th ...: not every one
            log.warning(
                "rank %d, round %d: %s from rank %d is not finite and was not merged (%d so far); its mass was, so the "
                "mean over ranks has changed",
                self._rank,
                round,
                what,
                peer,
                self._skipped,
            )
