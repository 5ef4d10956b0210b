"""What happens to a message that has come: its header is checked, and chunk by chunk it is folded in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ..errors import MismatchError, NonFiniteError
from ..memory import Chunk, Memory, Verdict
from ..observe.events import Events
from .wire import EPOCH, Header

__all__ = ["Merger"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A chunk that was given to the memory to be merged, and what became of it."""

    verdict: Verdict
    chunk: Chunk
    peer: int
    round: int
    slab: Any
    """What holds the chunk, where nothing else has been received there before it is known whether it is finite."""


class Merger:
    """Merges chunks of messages into the parameters.

    An accelerator says later that a chunk was not finite: then nothing of it was merged, and that is reported by the
    next call that finds it out. Its mass was accepted either way, so that none is lost.

    Args:
        name: gives the rank of a participant, or of this one (None), as the user knows it.
        epoch: the one that messages must belong to.
        rank: this participant.
        nonfinite: "raise", or "skip": keep z where a message is not finite, but accept its mass.
        greet: called with the sender and the header of every message.
        around: makes a context in which the late messages of one round, in which they were sent, are merged.
    """

    def __init__(
        self,
        memory: Memory,
        events: Events,
        rank: int,
        nonfinite: str,
        greet: Callable[[int, Header], None],
        name: Callable[[int | None], int],
        epoch: int = EPOCH,
        around: Callable[[int], AbstractContextManager[None]] = lambda sent: nullcontext(),
    ) -> None:
        self._memory = memory
        self._events = events
        self._rank = rank
        self._nonfinite = nonfinite
        self._greet = greet
        self._name = name
        self._epoch = epoch
        self.around = around
        self._asked: deque[_Asked] = deque()

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
            MismatchError: another round, epoch or layout, or a mass that is not above 0.
        """
        here, there = self._name(None), self._name(peer)
        if round is not None and header.round != round:
            raise MismatchError(
                f"rank {here}: rank {there} sent its message of round {header.round} where round {round} was "
                "expected: the ranks count rounds differently. Load the same checkpoint on every rank"
            )
        if header.epoch != self._epoch:
            raise MismatchError(
                f"rank {here}: the message of rank {there} in round {header.round} is of epoch {header.epoch}, and "
                f"this rank is in epoch {self._epoch}: the ranks run different versions of pushsum_opt. Install one "
                "version on all hosts"
            )
        if header.layout != self._memory.layout_digest:
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
        """Fold one chunk in, and report what became of it and of earlier ones, as far as that is known.

        Args:
            round: the round in which it was sent.
            weight: w before this message.
            mass: what the message carries.

        Raises:
            NonFiniteError: it, or an earlier one, holds inf or nan and ``nonfinite="raise"``; it is not merged then.
        """
        heal = self._nonfinite == "skip"
        verdict = self._memory.merge_if_finite(chunk, slab, weight, mass, heal=heal)
        self._asked.append(_Asked(verdict, chunk, peer, round, None if self._memory.pending_buffers else slab))
        self.report()

    def report(self, *, wait: bool = False) -> None:
        """Report what became of chunks, in the order in which they were merged.

        Args:
            wait: of all of them; otherwise as far as that is known.

        Raises:
            NonFiniteError: one holds inf or nan and ``nonfinite="raise"``; it was not merged.
        """
        while self._asked and (wait or self._asked[0].verdict.ready()):
            self._report(self._asked.popleft())

    def _report(self, asked: _Asked) -> None:
        outcome = asked.verdict.outcome()
        if outcome.missed:
            self._events.blocks_missed(asked.round, asked.peer, outcome.missed)
        if outcome.finite and not outcome.healed:
            return
        what = self._memory.describe(asked.chunk)
        if outcome.healed:
            self._events.chunk_skipped(asked.round, self._rank, what)
        elif self._nonfinite == "skip":
            self._events.chunk_skipped(asked.round, asked.peer, what)
        else:
            named = what
            if asked.slab is not None:
                named = self._memory.name_nonfinite(asked.chunk, self._memory.received_values(asked.chunk, asked.slab))
            raise NonFiniteError(
                f"rank {self._name(None)}: the message of rank {self._name(asked.peer)} in round {asked.round} holds "
                f"inf or nan in {named}; it was not merged. That rank has diverged: look at its loss and gradients "
                "(learning rate, loss scaling). nonfinite='skip' trains on through such messages"
            )
