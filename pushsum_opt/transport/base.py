"""How a message moves: what every transport promises, and what it does not.

A transport carries runs of bytes between ranks, and knows nothing of rounds, mass or tensors.

Promised:
    * messages between the same two ranks with the same tag arrive in the order in which they were posted;
    * a posted buffer has been read, and an expected one filled, once its ticket is done, and not before;
    * collectives complete in the order in which they were begun, which must be the same on every rank.

*Not* promised:
    * that a send completes before its receive was expected, however small it is;
    * any order between different peers or different tags;
    * that anything moves while no thread polls;
    * that a buffer keeps its old contents, or has its new ones, before its ticket is done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from ..clock import Clock, monotonic
from .roll_call import Progress

__all__ = ["ANY", "Notice", "Ticket", "Transport"]


ANY = -1
"""As a peer of :meth:`Transport.expect`: the rank that sends first."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One transfer under way. The transport keeps the buffer alive and sets ``done``."""

    what: str
    """What is being waited for, in words: for stall lines and errors."""

    peer: int | None
    """The other rank; None for a collective."""

    buffer: Any = field(repr=False)
    sends: bool = False
    collective: int = 0
    """For a collective: which one on this transport, counted from 1."""
    done: bool = False
    request: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Notice:
    """What a rank that stops tells the others, so that they do not wait for it."""

    sender: int
    failed: bool
    rounds: int
    """Rounds that the sender completed."""

    collectives: int
    """Collectives that the sender began on this transport."""

    reason: str = ""


class Transport(ABC):
    """Point-to-point messages, a few collectives and notices for one group of ranks.

    Every method returns at once, except :meth:`poll` and :meth:`close`.
    """

    rank: int
    size: int
    name: str
    """What carries the messages, for the start line."""

    collectives: int = 0
    """Collectives begun so far."""

    ranks: Sequence[int] | None = None
    """Its ranks as the user knows them, where they have other numbers."""

    progress: Progress | None = None
    """How far its ranks have come, for the roll call of the job."""

    clock: Clock = monotonic
    """For deadlines, stall lines and the pace of steps; polls, naps and the roll call use the machine's clock."""

    threaded: bool = False
    """Whether a thread other than the main one may call, as long as no two do at the same time."""

    concurrent: bool = False
    """Whether a thread may call while another one uses another transport: this rank has several, and the program may
    use the same network by itself."""

    def job_rank(self, rank: int | None = None) -> int:
        """Return a rank, or this one, as the user knows it."""
        own = self.rank if rank is None else rank
        return own if self.ranks is None else self.ranks[own]

    @property
    @abstractmethod
    def under_way(self) -> int:
        """Transfers begun and not yet done."""

    @property
    def bytes_under_way(self) -> int:
        """Bytes of the transfers under way; 0 where no more of them move by frequent polls than by rare ones."""
        return 0

    @abstractmethod
    def post(self, buffer: Any, peer: int, tag: int, what: str, matched: bool = False) -> Ticket:
        """Begin to send the bytes of ``buffer`` to rank ``peer``; it must not change until the ticket is done.

        With ``matched``, the ticket is done only once the peer has begun to receive.
        """

    @abstractmethod
    def expect(self, buffer: Any, peer: int, tag: int, what: str) -> Ticket:
        """Begin to receive from rank ``peer``, or from :data:`ANY`, into the beginning of ``buffer``.

        A message that is longer than the buffer is an error.
        """

    @abstractmethod
    def cancel(self, ticket: Ticket) -> None:
        """Take back an expectation that no message has met."""

    @abstractmethod
    def broadcast(self, buffer: Any, root: int, what: str) -> Ticket:
        """Begin to copy the bytes of ``buffer`` on rank ``root`` into everyone's. Collective."""

    @abstractmethod
    def sum(self, values: Any, what: str) -> Ticket:
        """Begin to replace ``values`` (numpy, float64 or float32) by its sum over ranks, equal bits everywhere.

        Collective.
        """

    @abstractmethod
    def gather(self, mine: bytes, what: str) -> tuple[Ticket, Any]:
        """Begin to collect ``mine`` (same length on every rank). Collective.

        Returns:
            The ticket, and a uint8 numpy array of shape (size, len(mine)) that is filled once it is done.
        """

    @abstractmethod
    def barrier(self, what: str) -> Ticket:
        """Begin a barrier: done once every rank has begun it. Collective."""

    @abstractmethod
    def poll(self, seconds: float) -> bool:
        """Move things along for at most ``seconds``; return early, with True, as soon as a ticket is done.

        Waiting leaves the processor and the interpreter lock to others.
        """

    def on_progress(self, callback: Callable[[Transport], None] | None) -> bool:
        """Call ``callback(transport)`` after every poll, from whichever thread polled, never from two at once.

        Asynchronous gossip uses it to begin to receive a message as soon as its header is here.

        Args:
            callback: a bound method, held weakly. It begins transfers on the transport that it is given, and returns
                at once. None: nothing is called any more.

        Returns:
            True where a thread polls in the background. Otherwise False, and nothing is ever called.
        """
        return False

    def refuse_if_stopped(self) -> None:  # noqa: B027  (only ranks of one process can be stopped from outside)
        """Raise PeerFailed where all ranks have been told to stop, also if this one waits for nothing."""

    def alone(self) -> AbstractContextManager[None]:
        """Return a context in which no other thread uses this transport."""
        return nullcontext()

    def revoke(self) -> None:  # noqa: B027  (only transports that outlive a rank can be revoked)
        """Make everything that is under way fail with RanksLost, on every rank. For good; what was sent is void."""

    @abstractmethod
    def tell(self, peers: Iterable[int], notice: Notice) -> None:
        """Send a notice to some ranks, at best effort, without waiting."""

    @abstractmethod
    def notices(self) -> list[Notice]:
        """Return the notices that have come since the last call."""

    @abstractmethod
    def close(self) -> None:
        """Free what the transport holds. All its tickets are done, or given up. Idempotent."""
