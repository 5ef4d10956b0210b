"""The named points of a round. Listeners attach here; the hot path knows none of them."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Events", "Listener"]


class Listener:
    """Does nothing at every point; override what is of interest. Called on the thread that gossips: be quick."""

    def round_begins(self, round: int) -> None:
        """A round is about to give and merge."""

    def message_posted(self, round: int, peer: int, nbytes: int) -> None:
        """A message of ``nbytes`` bytes in all was handed to the transport."""

    def message_merged(self, round: int, peer: int, age: int) -> None:
        """A message that is ``age`` rounds old has been folded in: the parameters hold it."""

    def waited(self, seconds: float) -> None:
        """This rank stood still for ``seconds`` seconds in all, in one wait: in a round or a collective call."""

    def stalled(self, seconds: float, what: str) -> None:
        """Nothing has moved for ``seconds`` seconds while waiting for ``what``."""

    def chunk_skipped(self, round: int, peer: int, what: str) -> None:
        """A non-finite part of a message was not merged, so the mean changed."""

    def round_ends(self, round: int, push_weight: float) -> None:
        """The round is complete."""


class Events(Listener):
    """Passes every point on to the listeners, in the order in which they subscribed.

    Args:
        name: gives the rank of a peer as the user knows it; None: by its own number.
        holds_merged: hold back what was merged until :meth:`release`: the ranks of a host merge a part each, and the
            parameters hold the whole message once these are put together.
    """

    def __init__(self, name: Callable[[int], int] | None = None, *, holds_merged: bool = False) -> None:
        self._listeners: tuple[Listener, ...] = ()
        self._name = (lambda peer: peer) if name is None else name
        self._holds_merged = holds_merged
        self._merged: list[tuple[int, int, int]] = []

    def subscribe(self, listener: Listener) -> None:
        self._listeners = (*self._listeners, listener)

    def unsubscribe(self, listener: Listener) -> None:
        self._listeners = tuple(other for other in self._listeners if other is not listener)

    def round_begins(self, round: int) -> None:
        for listener in self._listeners:
            listener.round_begins(round)

    def message_posted(self, round: int, peer: int, nbytes: int) -> None:
        for listener in self._listeners:
            listener.message_posted(round, self._name(peer), nbytes)

    def message_merged(self, round: int, peer: int, age: int) -> None:
        self._merged.append((round, peer, age))
        if not self._holds_merged:
            self.release()

    def release(self) -> None:
        """Pass on what was merged and held back."""
        merged, self._merged = self._merged, []
        for round, peer, age in merged:
            for listener in self._listeners:
                listener.message_merged(round, self._name(peer), age)

    def waited(self, seconds: float) -> None:
        for listener in self._listeners:
            listener.waited(seconds)

    def stalled(self, seconds: float, what: str) -> None:
        for listener in self._listeners:
            listener.stalled(seconds, what)

    def chunk_skipped(self, round: int, peer: int, what: str) -> None:
        for listener in self._listeners:
            listener.chunk_skipped(round, self._name(peer), what)

    def round_ends(self, round: int, push_weight: float) -> None:
        for listener in self._listeners:
            listener.round_ends(round, push_weight)
