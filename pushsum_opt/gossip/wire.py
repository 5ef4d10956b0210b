"""What stands on the wire: a header of fixed size before the chunks of every message, and the tags of both.

Chunks of one message share a tag: two messages between the same ranks with the same tag arrive in the order in which
they were posted, so the chunks need no numbers of their own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["EPOCH", "HEADER_BYTES", "NO_NUMBERS", "NUMBERS_BYTES", "VERSION", "Header", "chunk_tag", "header_tag"]

VERSION = 4
EPOCH = 0
NUMBERS_BYTES = 432
"""What a message carries beside the parameters: see :class:`~pushsum_opt.gossip.means.Means`."""
NO_NUMBERS = bytes(NUMBERS_BYTES)
_FORMAT = struct.Struct(f"<qd8s8sidi{NUMBERS_BYTES}s")
HEADER_BYTES = _FORMAT.size

ROUNDS_OF_TAGS = 16
"""Tags repeat after so many rounds: far more than are ever in flight between two ranks."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a message says of itself."""

    round: int
    mass: float
    layout: bytes
    """8 bytes: the hash of the sender's chunks."""

    signature: bytes = bytes(8)
    """8 bytes about the sender's first local step, zero where there is nothing to say."""

    sender: int = -1
    """For receivers that take messages from anybody."""

    pace: float = 0.0
    """The sender's estimate of the mean over ranks of the seconds that a step takes; 0 where it is not used."""

    epoch: int = EPOCH
    """Counts the changes of who takes part: a message of another epoch is void."""

    numbers: bytes = NO_NUMBERS
    """NUMBERS_BYTES bytes: the message's part of what is averaged for the user; zeros where nobody asks for it."""

    def pack(self) -> bytearray:
        numbers = (self.round, self.mass, self.layout, self.signature, self.sender, self.pace, self.epoch)
        return bytearray(_FORMAT.pack(*numbers, self.numbers))

    @classmethod
    def unpack(cls, data: bytearray) -> Header:
        return cls(*_FORMAT.unpack(data))


def header_tag(round: int) -> int:
    return 2 * (round % ROUNDS_OF_TAGS)


def chunk_tag(round: int) -> int:
    return 2 * (round % ROUNDS_OF_TAGS) + 1
