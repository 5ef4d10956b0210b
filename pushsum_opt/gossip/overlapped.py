"""Overlapped rounds: round k merges exactly the messages of round k - tau, which moved during tau steps of computing.

Algorithm 2 of Assran et al. (2019), with a message in every round. Nothing is left to chance: which message is merged
when does not depend on how fast anything was, so two runs give the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from . import rules
from .messages import RECEIVED, SENT, Incoming, Outgoing, Restored, Slabs
from .protocol import Exchange, InFlight, Mode

__all__ = ["OverlappedMode"]


class OverlappedMode(Mode):
    """Give now, merge ``staleness`` rounds later.

    With one out-peer, w settles at 2 / (2 + tau): the rest of the mass is in flight.

    Args:
        staleness: tau >= 1.
        signature: 8 bytes that the next header carries, asked for each round.
    """

    def __init__(self, exchange: Exchange, staleness: int, signature: Callable[[], bytes]) -> None:
        self.staleness = staleness
        super().__init__(exchange)
        self._tau = staleness
        self._signature = signature
        self._sent_slabs = Slabs(exchange.memory, SENT)
        self._received_slabs = Slabs(exchange.memory, RECEIVED)
        self._sending: deque[Outgoing] = deque()
        # (round, messages by sender), oldest first
        self._awaited: deque[tuple[int, Sequence[Incoming | Restored]]] = deque()
        self._forgotten: list[Incoming | Restored] = []  # still to come, and then to be dropped
        self.reserve()

    def _make_slabs(self) -> None:
        degrees = self._in_degrees()
        awaited = [sum(degrees[(k + j) % len(degrees)] for j in range(self._tau)) for k in range(len(degrees))]
        self._received_slabs.reserve(max(awaited, default=0))
        self._sent_slabs.reserve(min(1, len(self._all_out_peers())))  # more where sending takes over a round

    # ------------------------------------------------------------------ a round

    def exchange(self, round: int, push_weight: float) -> float:
        self._follow(round)
        self._exchange.memory.begin_round()
        left = self._give(round, push_weight)
        while self._awaited and rules.due(self._tau, round, self._awaited[0][0]):
            left = self._merge_oldest(left, round)
        self._await_messages_of(round)
        return left

    def _give(self, round: int, weight: float) -> float:
        """Post this round's message; return w - M."""
        exchange = self._exchange
        gives = exchange.graph.gives(exchange.transport.rank, exchange.transport.size, round)
        if not gives:
            return weight
        masses = rules.overlapped_gives(gives, weight, exchange.initial_weight, self._tau, len(self._awaited))
        left = weight - sum(mass for _, mass in masses)
        slabs, shares = self._free_send_slabs(round), [share for _, share in gives]
        self._sending.append(Outgoing(exchange, slabs, round, masses, left, shares, self._signature()))
        return left

    def _merge_oldest(self, weight: float, now: int) -> float:
        sent, messages = self._awaited.popleft()
        with self._exchange.merger.around(sent):
            for message in messages:
                weight = message.merge(weight, now)
                self._received_slabs.put_back(message.slabs)
        return weight

    def _await_messages_of(self, round: int) -> None:
        exchange = self._exchange
        senders = exchange.graph.in_peers(exchange.transport.rank, exchange.transport.size, round)
        self._awaited.append(
            (round, [Incoming(exchange, self._received_slabs.take(), sender, round) for sender in senders])
        )

    def _free_send_slabs(self, round: int) -> dict[int, object]:
        """Return slabs that nothing reads any more; wait for a peer only when it is far behind, or memory is short."""
        while self._sending and self._sending[0].done:
            self._sent_slabs.put_back(self._sending.popleft().slabs)
        self._drop_forgotten()
        while len(self._sending) > 2 * self._tau + 1:
            self._wait_for_oldest_send(round)
        if self._sending:
            if (slabs := self._sent_slabs.take_if_free()) is not None:
                return slabs
            # Whoever is to receive it awaits it already: it was posted in an earlier round.
            self._wait_for_oldest_send(round)
        return self._sent_slabs.take()

    def _wait_for_oldest_send(self, round: int) -> None:
        oldest = self._sending.popleft()
        self._exchange.channel.wait(oldest.tickets, round)
        self._sent_slabs.put_back(oldest.slabs)

    def _follow(self, round: int) -> None:
        self._follow_the_plan(round, in_flight=bool(self._awaited or self._sending or self._forgotten))

    # ------------------------------------------------------------------ what is in flight

    def drain(self, round: int, push_weight: float, call: str) -> float:
        self._follow(round)
        self.meet(round, call)
        for message in self._forgotten:
            self._exchange.channel.wait(message.tickets, message.round)
        self._drop_forgotten()
        while self._awaited:
            push_weight = self._merge_oldest(push_weight, round)
        while self._sending:
            self._wait_for_oldest_send(round - 1)
        self._exchange.merger.report(wait=True)
        return push_weight

    def await_in_flight(self, round: int, push_weight: float, call: str) -> float:
        self._follow(round)
        self.meet(round, call)
        for sent, messages in self._awaited:
            for message in messages:
                self._exchange.channel.wait(message.tickets, sent)
        self._exchange.merger.report(wait=True)
        return push_weight

    def in_flight(self) -> Iterable[InFlight]:
        for _, messages in self._awaited:
            for message in messages:
                if message.done:
                    yield message.open(), message.slabs

    def rounds_in_flight(self) -> Sequence[int]:
        return [sent for sent, _ in self._awaited]

    def state(self) -> list[dict[str, Any]]:
        memory = self._exchange.memory

        def one(message: Incoming | Restored) -> dict[str, Any]:
            tensors = memory.message_state(message.slabs)
            return {"sender": message.peer, "mass": message.open(), "tensors": tensors}

        return [
            {
                "round": sent,
                "messages": [one(message) for message in messages if message.done],
                "missing": sum(not message.done for message in messages),
            }
            for sent, messages in self._awaited
        ]

    def load_state(self, awaited: Sequence[Mapping[str, Any]], push_weight: float) -> float:
        self.forget()
        for item in awaited:
            messages = []
            for saved in item["messages"]:
                slabs = self._received_slabs.take()
                one = Restored(self._exchange, slabs, saved["sender"], item["round"], saved["mass"], saved["tensors"])
                messages.append(one)
            self._awaited.append((item["round"], messages))
        return push_weight

    def surely_opened(self, peer: int, sent_in: int, heard: int) -> bool:
        return sent_in < heard - self._tau

    def merge_restored(self) -> None:
        exchange = self._exchange
        weight = exchange.ledger.weight
        for sent, messages in self._awaited:
            restored = [message for message in messages if isinstance(message, Restored)]
            with exchange.merger.around(sent):
                for message in restored:
                    weight = message.merge(weight, sent)

    def forget(self) -> None:
        self._forgotten += [message for _, messages in self._awaited for message in messages]
        self._awaited.clear()
        self._drop_forgotten()

    def _drop_forgotten(self) -> None:
        for message in self._forgotten:
            if message.done:
                self._received_slabs.put_back(message.slabs)
        self._forgotten = [message for message in self._forgotten if not message.done]

    def extra_bytes(self) -> int:
        return self._sent_slabs.nbytes + self._received_slabs.nbytes
