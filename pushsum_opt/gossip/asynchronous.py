"""Asynchronous rounds (AGP, Assran and Rabbat 2020): merge what has come, give to free peers, wait for nothing.

Ranks may run at different speeds, take different numbers of steps and finish at different times. Mass is conserved
whatever happens; which message is merged when depends on the machine, so two runs differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..channel.meeting import Meeting
from ..transport import ANY, Ticket, Transport
from . import rules
from .messages import RECEIVED, SENT, Outgoing, Slabs, expect_chunks
from .pace import Pace
from .protocol import Exchange, InFlight, Mode
from .wire import HEADER_BYTES, Header, header_tag

__all__ = ["AsynchronousMode"]

MOST_ARRIVING = 4
"""Messages on their way to this rank at a time. A further sender stays busy, and keeps its mass."""
MOST_ROUNDS_SENDING = 4
"""Rounds whose messages may be on their way from this rank."""


@dataclass(eq=False)
class _Arrival:
    """A message whose header has come, on its way into slabs."""

    header: Header
    mass: float
    slabs: dict[int, Any]
    tickets: list[Ticket]

    @property
    def done(self) -> bool:
        return all(ticket.done for ticket in self.tickets)


@dataclass(eq=False)
class _Listening:
    """A receive buffer for the next header, from any rank."""

    ticket: Ticket
    buffer: bytearray


class AsynchronousMode(Mode):
    """Give now, merge whenever it comes.

    Args:
        signature: 8 bytes that the next header carries, asked for each round.
        pace: scales local steps so that slow ranks count as much as fast ones; None: they count by their speed.
    """

    staleness = "unbounded"

    def __init__(self, exchange: Exchange, signature: Callable[[], bytes], pace: Pace | None) -> None:
        super().__init__(exchange)
        self._signature = signature
        self._pace = pace
        self._sent_slabs = Slabs(exchange.memory, SENT)
        self._received_slabs = Slabs(exchange.memory, RECEIVED)
        self._sending: list[Outgoing] = []
        self._arriving: list[_Arrival] = []
        self._listening: _Listening | None = None
        self.reserve()
        # An accelerator's buffers are handed out by the caller alone.
        self._served = not exchange.memory.pending_buffers and exchange.transport.on_progress(self._accept)
        if not self._served:
            self._accept(exchange.transport)

    def _make_slabs(self) -> None:
        if self._exchange.transport.size > 1:
            self._received_slabs.reserve(MOST_ARRIVING)
        # A peer that is still busy with a message gets no second one.
        self._sent_slabs.reserve(min(MOST_ROUNDS_SENDING, len(self._all_out_peers())))

    # ------------------------------------------------------------------ a round

    def exchange(self, round: int, push_weight: float) -> float:
        self._follow(round)
        self._exchange.memory.begin_round()
        if self._pace is not None:
            self._pace.step_done(self._exchange.initial_weight / push_weight)
        self._take_in()
        self._exchange.channel.hear()
        # Give first, then merge, as in Algorithm 1: so the next local step is taken with a w that holds what has come.
        # After merging first, it would be taken with what giving has left: a smaller w, which scales the step by more.
        return self._merge_what_has_come(round, self._give(round, push_weight))

    def _give(self, round: int, weight: float) -> float:
        exchange = self._exchange
        self._free_sent_slabs()
        if len(self._sending) >= MOST_ROUNDS_SENDING:
            return weight
        unable = exchange.channel.finished.keys() | {peer for sent in self._sending for peer in sent.peers}
        gives = exchange.graph.gives(exchange.transport.rank, exchange.transport.size, round)
        masses = rules.asynchronous_gives(gives, weight, exchange.initial_weight, unable)
        if not masses:
            return weight
        left = weight - sum(mass for _, mass in masses)
        pace = 0.0 if self._pace is None else self._pace.estimate
        slabs, signature = self._sent_slabs.take(), self._signature()
        fractions = [mass / weight for _, mass in masses]
        one = Outgoing(exchange, slabs, round, masses, left, fractions, signature, pace=pace, tagged=False)
        self._sending.append(one)
        return left

    def _free_sent_slabs(self) -> None:
        for sent in self._sending:
            if sent.done:
                self._sent_slabs.put_back(sent.slabs)
        self._sending = [sent for sent in self._sending if not sent.done]

    def step_scale(self) -> float:
        return 1.0 if self._pace is None else self._pace.scale

    # ------------------------------------------------------------------ receiving

    def _take_in(self) -> None:
        """See what has come by now.

        Raises:
            MismatchError: a peer's message does not fit.
        """
        exchange, moved = self._exchange, True
        while moved:  # a header and then its chunks, and behind them the next header, may all be here already
            moved = exchange.transport.poll(0.0)
            if not self._served:
                self._accept(exchange.transport)
        listening = self._listening
        if listening is not None and listening.ticket.done:
            header = Header.unpack(listening.buffer)
            if header.layout != exchange.memory.layout_digest:  # that is why it was not accepted
                exchange.merger.check(header, header.sender, None)

    def _accept(self, transport: Transport) -> None:
        """Begin to receive a message whose header has come, and listen for the next one if there is a place for it.

        A thread that moves messages calls this by itself: a message does not wait for this rank's next round. One that
        does not fit is left alone: this rank may be about to take the same new strides as its sender.
        """
        memory, listening = self._exchange.memory, self._listening
        if listening is not None and listening.ticket.done:
            header = Header.unpack(listening.buffer)
            if header.layout != memory.layout_digest:
                return
            mass = self._exchange.merger.check(header, header.sender, None)
            slabs = self._received_slabs.take()
            # Chunks carry the tag of round 0 as the header does: a rank sends the same peer one message at a time.
            tickets = expect_chunks(memory, transport, slabs, header.sender, 0)
            self._arriving.append(_Arrival(header, mass, slabs, tickets))
            self._listening = None
        if self._listening is None and len(self._arriving) < MOST_ARRIVING and transport.size > 1:
            buffer = bytearray(HEADER_BYTES)
            self._listening = _Listening(transport.expect(buffer, ANY, header_tag(0), "any message"), buffer)

    def _merge_what_has_come(self, round: int, weight: float) -> float:
        here = [arrival for arrival in self._arriving if arrival.done]
        for arrival in here:
            weight = self._merge(arrival, round, weight)
            self._arriving.remove(arrival)  # in place: the thread appends to it
        if here:
            self._take_in()  # there is room for more
        return weight

    def _merge(self, arrival: _Arrival, round: int, weight: float) -> float:
        exchange, header = self._exchange, arrival.header
        exchange.merger.greet(header, header.sender)
        exchange.ledger.accept(header.sender, header.round, arrival.mass)
        exchange.means.take(header.numbers, header.sender, header.round)
        age = round - header.round
        exchange.events.message_arrived(round, header.sender, age)
        with exchange.merger.around(header.round):
            for chunk in exchange.memory.exchanged:
                slab = arrival.slabs[chunk.index]
                exchange.merger.merge(chunk, slab, header.sender, header.round, weight, arrival.mass)
        if self._pace is not None:
            self._pace.merge(header.pace, arrival.mass / (weight + arrival.mass))
        exchange.events.message_merged(round, header.sender, age)
        self._received_slabs.put_back(arrival.slabs)
        return weight + arrival.mass

    def _follow(self, round: int) -> None:
        self._follow_the_plan(round, in_flight=bool(self._arriving or self._sending))

    # ------------------------------------------------------------------ what is in flight

    def drain(self, round: int, push_weight: float, call: str) -> float:
        """Merge every message in flight: the non-blocking consensus of Hoefler, Siebert and Lumsdaine (2010).

        1. Wait until every message that this rank has sent is matched: its receiver has begun to receive it.
        2. Begin a non-blocking barrier.
        3. When it completes, every rank's messages are matched. So only those that are already arriving are left:
           finish these.

        Meanwhile merge whatever comes.
        """
        self._follow(round)
        channel = self._exchange.channel
        everyone: Meeting | None = None
        weight = push_weight

        def left() -> Sequence[Ticket]:
            nonlocal weight, everyone
            # Read this before taking in: a message that was matched before the barrier completed must be accepted in
            # this pass, and not missed.
            all_sent = everyone is not None and everyone.ticket.done
            self._take_in()
            weight = self._merge_what_has_come(round, weight)
            self._free_sent_slabs()
            for sent in self._sending:  # a thread may finish any of them by now
                if unsent := [ticket for ticket in sent.tickets if not ticket.done]:
                    return unsent
            if everyone is None:
                everyone = Meeting(channel.transport, call, -1, self._layout())
            return [] if all_sent and not self._arriving else [everyone.ticket, *self._arriving_tickets()]

        channel.wait_while(left, -1, patient=channel.closing)
        assert everyone is not None
        everyone.check()
        # A rank that is done may give again at once; no rank merges that before all are done.
        channel.barrier(call)
        self._exchange.merger.report(wait=True)
        return weight

    def meet(self, round: int, call: str) -> None:
        super().meet(-1, call)  # ranks may be in different rounds

    def _arriving_tickets(self) -> list[Ticket]:
        return [ticket for arrival in self._arriving for ticket in arrival.tickets]

    def await_in_flight(self, round: int, push_weight: float, call: str) -> float:
        # What is on its way cannot be counted without taking it in, and taking it in is what any round may do.
        return self.drain(round, push_weight, call)

    def surely_opened(self, peer: int, sent_in: int, heard: int) -> bool:
        # A peer gets one message at a time, and it counts as sent once the peer has begun to receive it.
        return not any(sent.round == sent_in and peer in sent.peers and not sent.done for sent in self._sending)

    def close(self) -> None:
        self._exchange.transport.on_progress(None)
        if self._listening is not None:
            self._exchange.transport.cancel(self._listening.ticket)
            self._listening = None

    def in_flight(self) -> Iterable[InFlight]:
        return [(arrival.mass, arrival.slabs) for arrival in self._arriving if arrival.done]

    def extra_bytes(self) -> int:
        return self._sent_slabs.nbytes + self._received_slabs.nbytes
