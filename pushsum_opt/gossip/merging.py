"""What happens to a message that has come: its header is checked, and chunk by chunk it is folded in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import MismatchError, NonFiniteError
from ..events import Events
from ..memory import Chunk, Memory
from .wire import Header

__all__ = ["Merger"]


class Merger:
    """Merges chunks of messages into the parameters.

    Args:
        name: gives the rank of a participant, or of this one (None), as the user knows it.
        rank: this participant.
        nonfinite: "raise", or "skip": keep z where a message is not finite, but accept its mass.
        greet: called with the sender and the header of every message.
    """

    def __init__(
        self,
        memory: Memory,
        events: Events,
        rank: int,
        nonfinite: str,
        greet: Callable[[int, Header], None],
        name: Callable[[int | None], int],
    ) -> None:
        self._memory = memory
        self._events = events
        self._rank = rank
        self._nonfinite = nonfinite
        self._greet = greet
        self._name = name

    def open(self, header: Header, peer: int, round: int) -> float:
        """Check a header, take note of its sender, and return the mass that its message carries."""
        mass = self.check(header, peer, round)
        self.greet(header, peer)
        return mass

    def check(self, header: Header, peer: int, round: int | None) -> float:
        """Check a header and return the mass that its message carries.

        Args:
            round: the round that it must belong to; None for any.

        Raises:
            MismatchError: another round, another layout, or a mass that is not above 0.
        """
        here, there = self._name(None), self._name(peer)
        if round is not None and header.round != round:
            raise MismatchError(
                f"rank {here}: rank {there} sent its message of round {header.round} where round {round} was "
                "expected: the ranks count rounds differently. Load the same checkpoint on every rank"
            )
        if header.layout != self._memory.layout:
            raise MismatchError(
                f"rank {here}: the parameters of rank {there} in round {header.round} have other shapes, strides "
                "or dtypes than on this rank. Convert the model (memory_format, dtype) on every rank at the same step"
            )
        if not 0 < header.mass < float("inf"):
            sent = f"rank {there} sent mass {header.mass} in round {header.round}"
            raise MismatchError(f"rank {here}: {sent}: expected a finite number above 0")
        return header.mass

    def greet(self, header: Header, peer: int) -> None:
        """Take note of the sender of a header that :meth:`check` has found good."""
        self._greet(peer, header)

    def merge(self, chunk: Chunk, slab: Any, peer: int, round: int, weight: float, mass: float) -> None:
        """Fold one chunk in.

        Args:
            round: the round in which it was sent.
            weight: w before this message.
            mass: what the message carries.

        Raises:
            NonFiniteError: it holds inf or nan and ``nonfinite="raise"``; it is not merged then.
        """
        if self._memory.received_is_finite(chunk, slab):
            if self._nonfinite == "skip" and self._memory.heal(chunk, slab):
                self._events.chunk_skipped(round, self._rank, self._memory.describe(chunk))
            self._memory.merge(chunk, slab, weight, mass)
        elif self._nonfinite == "skip":
            self._events.chunk_skipped(round, peer, self._memory.describe(chunk))
        else:
            named = self._memory.name_nonfinite(chunk, self._memory.received_values(chunk, slab))
            raise NonFiniteError(
                f"rank {self._name(None)}: the message of rank {self._name(peer)} in round {round} holds inf or nan in "
                f"{named}; it was not merged. Where that is a parameter, that rank has diverged: look at its loss and "
                "gradients (learning rate, loss scaling). nonfinite='skip' trains on through such messages. A buffer "
                "that holds inf on purpose stays on each rank if it does so when the optimizer is wrapped, or with "
                "buffers='average'"
            )
