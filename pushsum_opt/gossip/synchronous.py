"""Synchronous rounds (Assran et al. 2019, Algorithm 1): round k merges the messages of round k.

A message is cut into chunks, and the chunks form a pipeline: while one is merged, the next ones are under way. Large
parameters are sent from where they lie; so a chunk is merged only when every send that reads it has completed.

Why nothing can lock up: think of the lowest chunk that any rank still waits for. Its sends are all posted, because
every rank has left the chunk before it; and every rank can receive it from all of its in-peers, because it either has a
slab for each of them, or sends from slabs of its own and so need not wait for its sends before it merges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..memory import Chunk, Memory
from ..transport import Ticket
from . import rules
from .messages import RECEIVED, SENT
from .protocol import Exchange, InFlight, Mode
from .wire import HEADER_BYTES, Header, chunk_tag, header_tag

__all__ = ["SynchronousMode"]

SlabByDevice = dict[str, Any]
"""Room for one chunk that is on its way to this rank: a slab by device."""

CHUNKS_ARRIVING = 4
"""Chunks on their way to this rank at a time. Each needs a slab."""
CHUNKS_SENT_AHEAD = 64
"""Chunks on their way from this rank to each out-peer. Most of them need no slab."""


class SynchronousMode(Mode):
    """Give and merge in the same round.

    Args:
        signature: 8 bytes that the next header carries, asked for each round.
    """

    staleness = 0

    def __init__(self, exchange: Exchange, signature: Callable[[], bytes]) -> None:
        super().__init__(exchange)
        self._signature = signature
        self._receive_slabs: list[SlabByDevice] = []
        self._send_slabs: dict[int, Any] = {}
        self.reserve()

    def _make_slabs(self) -> None:
        memory, most = self._exchange.memory, max(self._in_degrees())
        window = _window(memory, most)
        self.receive_slabs(window)
        if self._all_out_peers():
            for chunk in memory.exchanged:
                if chunk.packed or window < most:
                    self.send_slab(chunk)

    def exchange(self, round: int, push_weight: float) -> float:
        memory, graph = self._exchange.memory, self._exchange.graph
        rank, size = self._exchange.transport.rank, self._exchange.transport.size
        memory.begin_round()
        gives = graph.gives(rank, size, round)
        in_peers = graph.in_peers(rank, size, round)
        if not gives and not in_peers:
            return push_weight
        memory.refresh()
        incoming = _Incoming(self._exchange, self.receive_slabs, round, in_peers)
        outgoing = _Outgoing(self._exchange, self.send_slab, round, push_weight, gives, copies=not incoming.roomy)
        incoming.begin()  # every receive before any send
        outgoing.begin(self._signature())
        weight: float = outgoing.left
        messages = incoming.open()
        for chunk in memory.exchanged:
            if in_peers:
                outgoing.finish(chunk)
            running = weight
            for peer, mass in messages:
                incoming.merge(chunk, peer, running, mass)
                running += mass
            outgoing.post_next()
        outgoing.finish_all()
        for peer, mass in messages:
            weight += mass
            self._exchange.means.take(incoming.numbers[peer], peer, round)
            self._exchange.events.message_merged(round, peer, 0)
        return weight

    def drain(self, round: int, push_weight: float, call: str) -> float:
        self.meet(round, call)
        self._exchange.merger.report(wait=True)
        return push_weight

    def await_in_flight(self, round: int, push_weight: float, call: str) -> float:
        return self.drain(round, push_weight, call)

    def in_flight(self) -> Iterable[InFlight]:
        return ()

    def surely_opened(self, peer: int, sent_in: int, heard: int) -> bool:
        return sent_in < heard  # a rank that sends in round k has opened all messages of the rounds before

    # ------------------------------------------------------------------ slabs, kept from round to round

    def receive_slabs(self, count: int) -> list[SlabByDevice]:
        """Return ``count`` places to receive into, each with room for the largest chunk of each device."""
        memory = self._exchange.memory
        largest = {chunk.device: 0 for chunk in memory.exchanged}
        for chunk in memory.exchanged:
            largest[chunk.device] = max(largest[chunk.device], chunk.nbytes)
        held = {device: len(slab) for device, slab in self._receive_slabs[0].items()} if self._receive_slabs else {}
        if any(held.get(device, 0) < nbytes for device, nbytes in largest.items()):
            self._receive_slabs = []
        while len(self._receive_slabs) < count:
            self._receive_slabs.append({device: memory.new_slab(n, device, RECEIVED) for device, n in largest.items()})
        return self._receive_slabs[:count]

    def send_slab(self, chunk: Chunk) -> Any:
        """Return the slab that a chunk is packed into."""
        slab = self._send_slabs.get(chunk.index)
        if slab is None or len(slab) != chunk.nbytes:
            self._send_slabs.pop(chunk.index, None)  # first give back what is too small or too large
            slab = self._send_slabs[chunk.index] = self._exchange.memory.new_slab(chunk.nbytes, chunk.device, SENT)
        return slab

    def extra_bytes(self) -> int:
        received = [slab for place in self._receive_slabs for slab in place.values()]
        return sum(len(slab) for slab in (*received, *self._send_slabs.values()))


def _window(memory: Memory, in_peers: int) -> int:
    """Return how many chunks are on their way to this rank at a time: at most one message, and CHUNKS_ARRIVING."""
    room = -(-memory.slab_bytes // memory.largest) if memory.exchanged else 0
    return min(CHUNKS_ARRIVING, room, in_peers * len(memory.exchanged))


class _Outgoing:
    """The half of a round that gives."""

    def __init__(
        self, exchange: Exchange, slab: Callable[[Chunk], Any], round: int, weight: float, gives: Any, copies: bool
    ) -> None:
        self._exchange = exchange
        self._memory = exchange.memory
        self._slab = slab
        self._round = round
        self._masses = rules.gives(gives, weight)
        self._shares = [share for _, share in gives]
        self._given = sum(mass for _, mass in self._masses)
        self.left = weight - self._given
        """w after giving."""
        self._copies = copies
        self._tickets: dict[int, list[Ticket]] = {}
        self._headers: list[Ticket] = []
        self._posted = 0

    def begin(self, signature: bytes) -> None:
        given = self._exchange.means.give(self._shares, self._round)
        for (peer, mass), numbers in zip(self._masses, given, strict=True):
            layout, sender = self._memory.layout_digest, self._exchange.transport.rank
            epoch = self._exchange.epoch
            header = Header(self._round, mass, layout, signature, sender, epoch=epoch, numbers=numbers).pack()
            self._exchange.ledger.give(peer, self._round, mass)
            what = f"it to take the header of round {self._round}"
            self._headers.append(self._exchange.transport.post(header, peer, header_tag(self._round), what))
            self._exchange.events.message_posted(self._round, peer, HEADER_BYTES + self._memory.message_bytes, mass)
        for _ in range(min(CHUNKS_SENT_AHEAD, len(self._memory.exchanged))):
            self.post_next()

    def post_next(self) -> None:
        """Post the next chunk to every out-peer, the same bytes to each."""
        if self._posted == len(self._memory.exchanged) or not self._masses:
            return
        chunk = self._memory.exchanged[self._posted]
        self._posted += 1
        packed = chunk.packed or self._copies
        if packed:
            buffer = self._memory.pack(chunk, self._slab(chunk), self.left, self._given)
        else:
            buffer = self._memory.in_place(chunk)
        what = f"it to take chunk {chunk.index} of {len(self._memory.exchanged)}"
        post, tag = self._exchange.transport.post, chunk_tag(self._round)
        self._tickets[chunk.index] = [post(buffer, peer, tag, what) for peer, _ in self._masses]
        if packed:  # on the host that takes a while: what was posted before this chunk moves on meanwhile
            self._exchange.transport.poll(0.0)

    def finish(self, chunk: Chunk) -> None:
        """Wait until nothing reads the chunk any more, so that it may be merged into."""
        if not (chunk.packed or self._copies):
            self._exchange.channel.wait(self._tickets.get(chunk.index, ()), self._round)

    def finish_all(self) -> None:
        for tickets in (self._headers, *self._tickets.values()):
            self._exchange.channel.wait(tickets, self._round)


class _Incoming:
    """The half of a round that merges: (chunk, in-peer) pairs in a fixed order, through a ring of slabs."""

    def __init__(
        self, exchange: Exchange, slabs: Callable[[int], list[SlabByDevice]], round: int, in_peers: tuple[int, ...]
    ) -> None:
        self._exchange = exchange
        self._memory = memory = exchange.memory
        self._round = round
        self._in_peers = in_peers
        self._items = [(chunk, peer) for chunk in memory.exchanged for peer in in_peers]
        self._slabs = slabs(_window(memory, len(in_peers)))
        self.roomy = len(in_peers) <= len(self._slabs)
        """Whether each in-peer's chunk has a slab; if not, waiting for sends before merging could lock up."""
        self._tickets: list[Ticket] = []
        self._headers: list[tuple[Ticket, bytearray]] = []
        self.numbers: dict[int, bytes] = {}
        """What each message carries beside the parameters."""
        self._merged = 0

    def begin(self) -> None:
        for peer in self._in_peers:
            buffer = bytearray(HEADER_BYTES)
            what = f"its message of round {self._round}"
            ticket = self._exchange.transport.expect(buffer, peer, header_tag(self._round), what)
            self._headers.append((ticket, buffer))
        for _ in self._slabs:
            self._expect_next()

    def open(self) -> list[tuple[int, float]]:
        """Return (in-peer, mass) in the order of merging."""
        self._exchange.channel.wait([ticket for ticket, _ in self._headers], self._round)
        messages = []
        for peer, (_, buffer) in zip(self._in_peers, self._headers, strict=True):
            header = Header.unpack(buffer)
            mass = self._exchange.merger.open(header, peer, self._round)
            self.numbers[peer] = header.numbers
            self._exchange.ledger.accept(peer, self._round, mass)
            messages.append((peer, mass))
        return messages

    def merge(self, chunk: Chunk, peer: int, weight: float, mass: float) -> None:
        slab = self._slabs[self._merged % len(self._slabs)][chunk.device]
        self._exchange.channel.wait((self._tickets[self._merged],), self._round)
        if chunk is self._memory.exchanged[-1]:
            self._exchange.events.message_arrived(self._round, peer, 0)
        self._exchange.merger.merge(chunk, slab, peer, self._round, weight, mass)
        self._merged += 1
        self._expect_next()

    def _expect_next(self) -> None:
        index = len(self._tickets)
        if index == len(self._items):
            return
        chunk, peer = self._items[index]
        slab = self._slabs[index % len(self._slabs)][chunk.device]
        buffer = self._memory.wire_buffer(slab, chunk.nbytes)
        what = f"chunk {chunk.index} of its message of round {self._round}"
        self._tickets.append(self._exchange.transport.expect(buffer, peer, chunk_tag(self._round), what))
