"""The named points of a run. Listeners attach here; the code that runs knows none of them."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Events", "Listener"]


class Listener:
    """Hears of every event, and does nothing; override the methods that are of interest.

    Called on the thread that steps, at the moment that the name says: be quick.

    ``peer`` is a rank of the job; ``round`` is k, the number of the round (from 0; -1 where there is none); ``call`` is
    what the user's program has called, such as ``"step()"``.
    """

    # ------------------------------------------------------------------ a step

    def local_step_begins(self, round: int) -> None:
        """The wrapped optimizer is about to step; only with a :class:`~pushsum_opt.PushSumOptimizer`."""

    def local_step_ends(self, round: int) -> None:
        """The wrapped optimizer has stepped: the parameters have changed on this rank alone."""

    def round_begins(self, round: int) -> None:
        """A round is about to give and merge."""

    def message_posted(self, round: int, peer: int, nbytes: int, mass: float) -> None:
        """A message of ``nbytes`` bytes in all, with this mass, was handed to the transport."""

    def message_arrived(self, round: int, peer: int, age: int) -> None:
        """All of a message that was sent ``age`` rounds ago is here. It is not merged yet.

        Without a bound of staleness, ``age`` is below 0 where the sender is ahead: ``round - age`` is its round.
        Synchronous messages are merged in parts: the first parts may be merged when the last one arrives.
        """

    def message_merged(self, round: int, peer: int, age: int) -> None:
        """A message that is ``age`` rounds old has been folded in: the parameters hold it.

        ``age`` is that of :meth:`message_arrived`.
        """

    def chunk_skipped(self, round: int, peer: int, what: str) -> None:
        """A non-finite part of a message was not merged, so the mean changed."""

    def blocks_missed(self, round: int, peer: int, count: int) -> None:
        """Blocks of 512 elements of a message in eight bits were too far from this rank's own, so these were kept."""

    def round_ends(self, round: int, push_weight: float) -> None:
        """The round is complete."""

    # ------------------------------------------------------------------ what all ranks do together

    def call_begins(self, call: str, round: int) -> None:
        """A collective call begins on this rank: an average, a drain, a checkpoint, the end."""

    def call_ends(self, call: str, round: int) -> None:
        """That call has ended on this rank, perhaps by an error."""

    # ------------------------------------------------------------------ what the user marks

    def span_begins(self, name: str) -> None:
        """The user's program enters ``with ps.observe.span(name):``, on any thread."""

    def span_ends(self, name: str) -> None:
        """It has left that block, perhaps by an error."""

    # ------------------------------------------------------------------ waits

    def wait_begins(self, call: str, peer: int | None, round: int) -> None:
        """This rank begins to wait, in a round or in a collective call; there ``peer`` is None.

        Where it waits for several peers, ``peer`` is one of them.
        """

    def wait_ends(self, call: str, peer: int | None, round: int, seconds: float) -> None:
        """That wait is over, perhaps by an error. It lasted ``seconds`` seconds. Calls :meth:`waited`.

        Where it was for several peers, ``peer`` is the one that kept this rank waiting to the end.
        """
        self.waited(seconds)

    def waited(self, seconds: float) -> None:
        """The short form of :meth:`wait_ends`."""

    def stalled(self, seconds: float, what: str) -> None:
        """This rank waits for ``what``, and nothing has moved for ``seconds`` seconds."""


class Events(Listener):
    """Passes every point on to the listeners, in the order in which they subscribed.

    Args:
        name: gives the rank of a peer in the job; None: peers are known by their numbers in the job already.
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

    def local_step_begins(self, round: int) -> None:
        for listener in self._listeners:
            listener.local_step_begins(round)

    def local_step_ends(self, round: int) -> None:
        for listener in self._listeners:
            listener.local_step_ends(round)

    def round_begins(self, round: int) -> None:
        for listener in self._listeners:
            listener.round_begins(round)

    def message_posted(self, round: int, peer: int, nbytes: int, mass: float) -> None:
        for listener in self._listeners:
            listener.message_posted(round, self._name(peer), nbytes, mass)

    def message_arrived(self, round: int, peer: int, age: int) -> None:
        for listener in self._listeners:
            listener.message_arrived(round, self._name(peer), age)

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

    def chunk_skipped(self, round: int, peer: int, what: str) -> None:
        for listener in self._listeners:
            listener.chunk_skipped(round, self._name(peer), what)

    def blocks_missed(self, round: int, peer: int, count: int) -> None:
        for listener in self._listeners:
            listener.blocks_missed(round, self._name(peer), count)

    def round_ends(self, round: int, push_weight: float) -> None:
        for listener in self._listeners:
            listener.round_ends(round, push_weight)

    def call_begins(self, call: str, round: int) -> None:
        for listener in self._listeners:
            listener.call_begins(call, round)

    def call_ends(self, call: str, round: int) -> None:
        for listener in self._listeners:
            listener.call_ends(call, round)

    def span_begins(self, name: str) -> None:
        for listener in self._listeners:
            listener.span_begins(name)

    def span_ends(self, name: str) -> None:
        for listener in self._listeners:
            listener.span_ends(name)

    def wait_begins(self, call: str, peer: int | None, round: int) -> None:
        for listener in self._listeners:
            listener.wait_begins(call, None if peer is None else self._name(peer), round)

    def wait_ends(self, call: str, peer: int | None, round: int, seconds: float) -> None:
        for listener in self._listeners:
            listener.wait_ends(call, None if peer is None else self._name(peer), round, seconds)

    def stalled(self, seconds: float, what: str) -> None:
        for listener in self._listeners:
            listener.stalled(seconds, what)
