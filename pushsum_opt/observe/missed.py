"""Logs that many blocks of messages in eight bits came out wrong."""

from __future__ import annotations

from collections.abc import Callable

from ..log import log
from .events import Listener

__all__ = ["MissedBlocks"]

TOO_MANY = 1e-4
FIRST_LOOK = 64
"""Messages after which the first warning may come."""


class MissedBlocks(Listener):
    """Warns where more than one block in 10^4 was missed; again when they have become four times as many.

    Args:
        rank: this one.
        blocks: returns how many a message has now.
    """

    def __init__(self, rank: int, blocks: Callable[[], int]) -> None:
        self._rank = rank
        self._blocks = blocks
        self._messages = 0
        self._missed = 0
        self._silent_until = 0

    def blocks_missed(self, round: int, peer: int, count: int) -> None:
        self._missed += count

    def message_merged(self, round: int, peer: int, age: int) -> None:
        self._messages += 1
        if self._messages < FIRST_LOOK or self._missed <= self._silent_until:
            return
        share = self._missed / (self._messages * self._blocks())
        if share > TOO_MANY:
            self._silent_until = 4 * self._missed
            log.warning(
                "rank %d, round %d: %.3g %% of what came in eight bits was too far from this rank's own values and was "
                "not merged (its mass was). Ranks move apart faster than they did lately: a learning rate that jumps, "
                "or one rank that was reloaded alone. If it goes on, take wire_dtype='bfloat16'",
                self._rank,
                round,
                100 * share,
            )
