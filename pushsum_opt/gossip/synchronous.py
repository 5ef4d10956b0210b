"""Synchronous rounds (Assran et al. 2019, Algorithm 1): round k merges the messages of round k.

A message is cut into chunks, and the chunks form a pipeline: while one is merged, the next ones are under way. Large
parameters are sent from where they lie; so a chunk is merged only when every send that reads it has completed.

Why nothing can lock up: think of the lowest chunk that any rank still waits for. Its sends are all posted, because
every rank has left the chunk before it; and every rank can receive it from all of its in-peers, because it either has a
slab for each of them, or sends from slabs of its own and so need not wait for its sends before it merges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import MismatchError, NonFiniteError
from ..events import Events
from ..graphs import Graph
from ..memory import Chunk, Memory
from ..transport import Ticket, Transport
from ..transport.waiting import Waiter
from .protocol import Gossip
from .wire import HEADER_BYTES, Header, chunk_tag, header_tag

__all__ = ["SynchronousGossip"]

WINDOW = 4  # chunks on their way to this rank at a time: each needs a slab
SEND_AHEAD = 64  # chunks on their way from this rank to each out-peer: these need none


class SynchronousGossip(Gossip):
    """Give and merge in the same round.

    Args:
        memory: the parameters of this rank.
        nonfinite: "raise", or "skip": keep z where a message is not finite, but accept its mass.
        signature: 8 bytes that the next header carries, asked for each round.
        greet: called with the rank and the header of every message, before it is merged.
    """

    staleness = 0

    def __init__(
        self,
        memory: Memory,
        transport: Transport,
        graph: Graph,
        waiter: Waiter,
        events: Events,
        nonfinite: str,
        signature: Callable[[], bytes],
        greet: Callable[[int, Header], None],
    ) -> None:
        self._memory = memory
        self._transport = transport
        self._graph = graph
        self._waiter = waiter
        self._events = events
        self._nonfinite = nonfinite
        self._signature = signature
        self._greet = greet
        self._slabs: list[Any] = []

    @property
    def in_flight(self) -> int:
        return 0

    def drain(self, round: int, push_weight: float) -> float:
        return push_weight

    def round(self, round: int, push_weight: float) -> float:
        rank, size = self._transport.rank, self._transport.size
        gives = self._graph.gives(rank, size, round)
        in_peers = self._graph.in_peers(rank, size, round)
        if not gives and not in_peers:
            return push_weight
        self._memory.refresh()
        incoming = _Incoming(self, round, in_peers)
        outgoing = _Outgoing(self, round, push_weight, gives, waits_to_merge=not incoming.roomy)
        weight: float = push_weight - outgoing.given
        incoming.begin()  # every receive before any send
        outgoing.begin()
        headers = incoming.headers()
        for chunk in self._memory.chunks:
            if in_peers:
                outgoing.finish(chunk)
            running = weight
            for peer, mass in headers:
                incoming.merge(chunk, peer, running, mass)
                running += mass
            outgoing.post_next()
        outgoing.finish_all()
        for _, mass in headers:
            weight += mass
        return weight

    # ------------------------------------------------------------------ used by the two halves of a round

    def slabs(self, count: int) -> list[Any]:
        """Return ``count`` slabs to receive into, each as large as the largest chunk; kept from round to round."""
        largest = self._memory.largest
        if self._slabs and len(self._slabs[0]) < largest:
            self._slabs = []
        while len(self._slabs) < count:
            self._slabs.append(self._memory.new_slab(largest))
        return self._slabs[:count]


class _Outgoing:
    """The half of a round that gives."""

    def __init__(
        self, gossip: SynchronousGossip, round: int, weight: float, gives: Any, waits_to_merge: bool
    ) -> None:
        self._memory = gossip._memory
        self._transport = gossip._transport
        self._waiter = gossip._waiter
        self._events = gossip._events
        self._round = round
        self._masses = [(peer, weight * share) for peer, share in gives]
        self.given = sum(mass for _, mass in self._masses)
        self._left = weight - self.given
        self._copies = waits_to_merge
        self._signature = gossip._signature()
        self._tickets: dict[int, list[Ticket]] = {}
        self._headers: list[Ticket] = []
        self._posted = 0

    def begin(self) -> None:
        layout = self._memory.layout
        for peer, mass in self._masses:
            header = Header(self._round, mass, layout, self._signature).pack()
            what = f"it to take the header of round {self._round}"
            self._headers.append(self._transport.post(header, peer, header_tag(self._round), what))
            self._events.message_posted(self._round, peer, HEADER_BYTES + self._memory.nbytes)
        for _ in range(SEND_AHEAD):
            self.post_next()

    def post_next(self) -> None:
        """Post the next chunk to every out-peer, the same bytes to each."""
        if self._posted == len(self._memory.chunks) or not self._masses:
            return
        chunk = self._memory.chunks[self._posted]
        self._posted += 1
        buffer = self._memory.outgoing(chunk, copy=self._copies)
        what = f"it to take chunk {chunk.index} of {len(self._memory.chunks)}"
        tag = chunk_tag(self._round)
        self._tickets[chunk.index] = [self._transport.post(buffer, peer, tag, what) for peer, _ in self._masses]
        if chunk.rounded:
            self._memory.keep_rounding(chunk, self._left, self.given)

    def finish(self, chunk: Chunk) -> None:
        """Wait until nothing reads the chunk any more, so that it may be merged into."""
        if not (chunk.packed or self._copies):
            self._waiter.wait(self._tickets.get(chunk.index, ()), self._round)

    def finish_all(self) -> None:
        for tickets in (self._headers, *self._tickets.values()):
            self._waiter.wait(tickets, self._round)


class _Incoming:
    """The half of a round that merges: (chunk, in-peer) pairs in a fixed order, through a ring of slabs."""

    def __init__(self, gossip: SynchronousGossip, round: int, in_peers: tuple[int, ...]) -> None:
        self._memory = gossip._memory
        self._transport = gossip._transport
        self._waiter = gossip._waiter
        self._events = gossip._events
        self._nonfinite = gossip._nonfinite
        self._greet = gossip._greet
        self._round = round
        self._in_peers = in_peers
        chunks = self._memory.chunks
        self._items = [(chunk, peer) for chunk in chunks for peer in in_peers]
        # Never more slabs than the parameters take themselves.
        room = -(-self._memory.nbytes // self._memory.largest) if chunks else 0
        self._slabs = gossip.slabs(min(WINDOW, room, len(self._items)))
        self.roomy = len(in_peers) <= len(self._slabs)
        self._tickets: list[Ticket] = []
        self._header_tickets: list[Ticket] = []
        self._header_buffers: list[bytearray] = []
        self._merged = 0

    def begin(self) -> None:
        for peer in self._in_peers:
            buffer = bytearray(HEADER_BYTES)
            what = f"its message of round {self._round}"
            self._header_tickets.append(self._transport.expect(buffer, peer, header_tag(self._round), what))
            self._header_buffers.append(buffer)
        for _ in self._slabs:
            self._expect_next()

    def headers(self) -> list[tuple[int, float]]:
        """Return (in-peer, mass) in the order of merging."""
        self._waiter.wait(self._header_tickets, self._round)
        masses = []
        for peer, buffer in zip(self._in_peers, self._header_buffers, strict=True):
            header = Header.unpack(buffer)
            self._check(peer, header)
            self._greet(peer, header)
            masses.append((peer, header.mass))
            self._events.message_merged(self._round, peer, 0)
        return masses

    def merge(self, chunk: Chunk, peer: int, weight: float, mass: float) -> None:
        slab = self._slabs[self._merged % len(self._slabs)]
        self._waiter.wait((self._tickets[self._merged],), self._round)
        if self._memory.received_is_finite(chunk, slab):
            if self._nonfinite == "skip" and self._memory.heal(chunk, slab):
                self._events.chunk_skipped(self._round, self._transport.rank, self._memory.describe(chunk))
            self._memory.merge(chunk, slab, weight, mass)
        elif self._nonfinite == "skip":
            self._events.chunk_skipped(self._round, peer, self._memory.describe(chunk))
        else:
            raise NonFiniteError(
                f"rank {self._transport.rank}: the message of rank {peer} in round {self._round} holds inf or nan in "
                f"{self._memory.describe(chunk)}; it was not merged. That rank's parameters have diverged: look at its "
                "loss and gradients (learning rate, loss scaling). nonfinite='skip' trains on through such messages"
            )
        self._merged += 1
        self._expect_next()

    def _expect_next(self) -> None:
        index = len(self._tickets)
        if index == len(self._items):
            return
        chunk, peer = self._items[index]
        buffer = self._memory.wire_buffer(self._slabs[index % len(self._slabs)], chunk.nbytes)
        what = f"chunk {chunk.index} of its message of round {self._round}"
        self._tickets.append(self._transport.expect(buffer, peer, chunk_tag(self._round), what))

    def _check(self, peer: int, header: Header) -> None:
        rank = self._transport.rank
        if header.round != self._round:
            raise MismatchError(
                f"rank {rank}: rank {peer} sent its message of round {header.round} where round {self._round} was "
                "expected: the ranks count rounds differently. Load the same checkpoint on every rank"
            )
        if header.layout != self._memory.layout:
            raise MismatchError(
                f"rank {rank}: the parameters of rank {peer} in round {self._round} have other shapes, strides or "
                "dtypes than on this rank. Convert the model (memory_format, dtype) on every rank at the same step"
            )
        if not 0 < header.mass < float("inf"):
            sent = f"rank {peer} sent mass {header.mass} in round {self._round}"
            raise MismatchError(f"rank {rank}: {sent}: expected a finite number above 0")
