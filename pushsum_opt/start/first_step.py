"""Notices ranks that train on the same data: their first local steps are equal, bit for bit."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from ..memory import Memory

__all__ = ["FirstStep"]

NOTHING = bytes(8)
SAMPLED_ELEMENTS = 1024
"""So many elements at either end of a tensor, or of its part in a chunk, are looked at."""


class FirstStep:
    """A signature of this rank's first local step, which its messages of round 0 carry.

    All ranks start from the same parameters. Where a rank and its in-peer hold the same bits after a step that changed
    something, they saw the same batch.

    Args:
        memory: the parameters.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._alike: Callable[[int], None] = lambda peer: None
        self._before: bytes | None = None
        self._signature = NOTHING

    def watch(self, alike: Callable[[int], None]) -> None:
        """The next local step is the first one; the parameters are as they are before it.

        Args:
            alike: called with the in-peer whose step was the same; at most once.
        """
        self._alike = alike
        self._before = self._look()

    def taken(self) -> None:
        """A local step is done, if there was any; only the first counts."""
        if self._before is not None:
            after = self._look()
            self._signature = NOTHING if after == self._before else after
            self._before = None

    def signature(self, round: int) -> bytes:
        """Return the 8 bytes that messages of a round carry; zero after round 0, and where the step changed nothing."""
        return self._signature if round == 0 else NOTHING

    def compare(self, peer: int, signature: bytes) -> None:
        """Compare with what an in-peer's message of the first round carries."""
        if self._signature == signature != NOTHING:
            self._signature = NOTHING
            self._alike(peer)

    def _look(self) -> bytes:
        check = 0
        for chunk in self._memory.chunks:
            check = zlib.crc32(self._memory.sample(chunk, SAMPLED_ELEMENTS), check)
        return struct.pack("<q", check + 1)
