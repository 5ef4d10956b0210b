"""Whole messages under way, each in slabs of its own: what the modes that do not wait in a round are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..memory import Chunk, Memory
from ..transport import Ticket, Transport
from .protocol import Exchange
from .wire import HEADER_BYTES, Header, chunk_tag, header_tag

__all__ = ["RECEIVED", "SENT", "Incoming", "Outgoing", "Restored", "Slabs", "expect_chunks"]

SENT = "a chunk of a message to send"
RECEIVED = "a chunk of a message to receive"


class Slabs:
    """Sets of slabs, one slab per chunk, that are used over and over.

    Args:
        what: what each slab is for, for the error where there is no memory.
    """

    def __init__(self, memory: Memory, what: str) -> None:
        self._memory = memory
        self._what = what
        self._layout = memory.layout_digest
        self._free: list[dict[int, Any]] = []
        self.made = 0
        """Sets that exist, free or not."""

    def reserve(self, count: int) -> None:
        """Make sets until ``count`` exist. None is in use."""
        for slabs in [self.take() for _ in range(count)]:
            self.put_back(slabs)

    def take(self) -> dict[int, Any]:
        """Return a set; a new one where none is free."""
        if (free := self._pop_free()) is not None:
            return free
        new, chunks = self._memory.new_slab, self._memory.exchanged
        slabs = {chunk.index: new(chunk.nbytes, chunk.device, self._what) for chunk in chunks}
        self.made += 1
        return slabs

    def take_if_free(self) -> dict[int, Any] | None:
        """Return a set; None where none is free, and an accelerator has no free memory for a new one."""
        if (free := self._pop_free()) is not None:
            return free
        slabs = {}
        for chunk in self._memory.exchanged:
            slabs[chunk.index] = self._memory.new_slab_if_free(chunk.nbytes, chunk.device)
            if slabs[chunk.index] is None:
                return None
        self.made += 1
        return slabs

    def _pop_free(self) -> dict[int, Any] | None:
        if self._layout != self._memory.layout_digest:
            self._layout, self._free, self.made = self._memory.layout_digest, [], 0
        return self._free.pop() if self._free else None

    def put_back(self, slabs: dict[int, Any]) -> None:
        if len(slabs) == len(self._memory.exchanged):
            self._free.append(slabs)

    @property
    def nbytes(self) -> int:
        return self.made * self._memory.slab_bytes


class Outgoing:
    """The message of one round to all out-peers: z as it was when it was given.

    Args:
        masses: (out-peer, mass) pairs.
        left: w after giving; what rounding on the wire takes away goes back into it.
        fractions: what each of these peers gets of this rank's part of the means; see :meth:`.means.Means.give`.
        pace: see :class:`~pushsum_opt.gossip.wire.Header`.
        tagged: the peers know the round, and its tag. Otherwise they take whatever comes, so the message counts as sent
            only once they have begun to receive it: however small, it cannot pile up at a slow peer.
    """

    def __init__(
        self,
        exchange: Exchange,
        slabs: dict[int, Any],
        round: int,
        masses: list[tuple[int, float]],
        left: float,
        fractions: Sequence[float],
        signature: bytes,
        *,
        pace: float = 0.0,
        tagged: bool = True,
    ) -> None:
        memory, post = exchange.memory, exchange.transport.post
        tag_round = round if tagged else 0
        self.round = round
        self.slabs = slabs
        self.peers = {peer for peer, _ in masses}
        self.tickets: list[Ticket] = []
        for (peer, mass), numbers in zip(masses, exchange.means.give(fractions, round), strict=True):
            layout, sender = memory.layout_digest, exchange.transport.rank
            header = Header(round, mass, layout, signature, sender, pace, exchange.epoch, numbers).pack()
            exchange.ledger.give(peer, round, mass)
            what = f"it to take the header of round {round}"
            self.tickets.append(post(header, peer, header_tag(tag_round), what, not tagged))
            exchange.events.message_posted(round, peer, HEADER_BYTES + memory.message_bytes, mass)
        given = sum(mass for _, mass in masses)
        for chunk in memory.exchanged:
            buffer = memory.pack(chunk, slabs[chunk.index], left, given)
            what = f"it to take chunk {chunk.index} of round {round}"
            self.tickets += [post(buffer, peer, chunk_tag(tag_round), what) for peer, _ in masses]

    @property
    def done(self) -> bool:
        return all(ticket.done for ticket in self.tickets)


class Incoming:
    """The message of one in-peer and round, on its way into slabs."""

    def __init__(self, exchange: Exchange, slabs: dict[int, Any], peer: int, round: int) -> None:
        self.peer = peer
        self.round = round
        self.slabs = slabs
        self._exchange = exchange
        self._header_buffer = bytearray(HEADER_BYTES)
        what = f"its message of round {round}"
        expect = exchange.transport.expect
        self.header = expect(self._header_buffer, peer, header_tag(round), what)
        self._chunks = expect_chunks(exchange.memory, exchange.transport, slabs, peer, round)

    @property
    def done(self) -> bool:
        return self.header.done and all(ticket.done for ticket in self._chunks)

    @property
    def tickets(self) -> list[Ticket]:
        return [self.header, *self._chunks]

    def open(self) -> float:
        """Return its mass, the header checked."""
        return self._exchange.merger.open(self._header, self.peer, self.round)

    @property
    def _header(self) -> Header:
        return Header.unpack(self._header_buffer)

    def merge(self, weight: float, now: int) -> float:
        """Wait for it, fold it in, and return w afterwards."""
        exchange = self._exchange
        exchange.channel.wait((self.header,), self.round)
        mass = self.open()
        exchange.ledger.accept(self.peer, self.round, mass)
        exchange.means.take(self._header.numbers, self.peer, self.round)
        last = len(self._chunks) - 1
        for index, (chunk, ticket) in enumerate(zip(exchange.memory.exchanged, self._chunks, strict=True)):
            exchange.channel.wait((ticket,), self.round)
            if index == last:
                exchange.events.message_arrived(now, self.peer, now - self.round)
            exchange.merger.merge(chunk, self.slabs[chunk.index], self.peer, self.round, weight, mass)
        exchange.events.message_merged(now, self.peer, now - self.round)
        return weight + mass


class Restored:
    """A message that had come before the run was saved: an :class:`Incoming` with nothing left to wait for.

    Args:
        tensors: what it holds, by name, as :meth:`~pushsum_opt.memory.Memory.message_state` returned it.
    """

    done = True

    def __init__(
        self, exchange: Exchange, slabs: dict[int, Any], peer: int, round: int, mass: float, tensors: Mapping[str, Any]
    ) -> None:
        self.peer = peer
        self.round = round
        self.slabs = slabs
        self.tickets: list[Ticket] = []
        self._exchange = exchange
        self._mass = mass
        exchange.memory.load_message_state(slabs, tensors)

    def open(self) -> float:
        """Return its mass."""
        return self._mass

    def merge(self, weight: float, now: int) -> float:
        """Fold it in, and return w afterwards."""
        exchange = self._exchange
        exchange.ledger.accept_restored(self._mass)
        for chunk in exchange.memory.exchanged:
            exchange.merger.merge(chunk, self.slabs[chunk.index], self.peer, self.round, weight, self._mass)
        exchange.events.message_merged(now, self.peer, now - self.round)
        return weight + self._mass


def expect_chunks(memory: Memory, transport: Transport, slabs: dict[int, Any], peer: int, round: int) -> list[Ticket]:
    """Begin to receive the chunks of a message, each into its slab."""

    def expect(chunk: Chunk) -> Ticket:
        buffer = memory.wire_buffer(slabs[chunk.index], chunk.nbytes)
        what = f"chunk {chunk.index} of its message of round {round}"
        return transport.expect(buffer, peer, chunk_tag(round), what)

    return [expect(chunk) for chunk in memory.exchanged]
