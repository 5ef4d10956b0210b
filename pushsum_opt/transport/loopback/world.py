"""What the ranks of one process share: messages under way, collectives that not all have begun, and who has died."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import MismatchError, PeerFailed, RanksLost
from ..base import ANY, Notice, Ticket
from ..roll_call import Message, RollCall
from .injection import Faults, Killed, Rendezvous

__all__ = ["Delays", "LoopbackWorld", "Transfer"]

EAGER_BYTES = 512
"""A message of at most this size may complete before its receive is posted."""
EAGER_SLOTS = 8
"""At most this many such messages wait for their receive between two ranks with one tag."""

EVERY_CONTEXT = -1

Delays = Callable[[int, int, int], float]
"""Seconds by which a message is late: (sender, receiver, how many it sent before) -> seconds."""

Route = tuple[int, int, int, int]  # context, source, destination, tag


class LoopbackWorld:
    """What the ranks of one process share.

    Args:
        size: number of ranks.
        seed: None for messages that arrive at once; otherwise each is late by up to ``spread`` seconds at random.
        spread: seconds.
        delays: seconds by which each message is late, prescribed; instead of ``seed``.
        local_size: how many consecutive ranks count as sharing a host; None: all of them.
        faults: which ranks die when; None: a rank that fails stops all others.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int | None = None,
        spread: float = 2e-3,
        delays: Delays | None = None,
        local_size: int | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.size = size
        self.faults = faults
        self.local_size = local_size or size
        self._seed = seed
        self._parts: dict[tuple[int, int], LoopbackWorld] = {}
        self.lock = threading.Lock()
        self.awake = [threading.Condition(self.lock) for _ in range(size)]
        self.rolls = [RollCall(_Post(self, rank)) for rank in range(size)]
        self.questions: list[list[Message]] = [[] for _ in range(size)]
        self.of_the_job = (self, list(range(size)))
        self.failure: tuple[int, str] | None = None
        self.dead: dict[int, float] = {}
        """Ranks that have died, of the world of the whole job, and when."""
        self.over: dict[int, int] = {}
        """Ranks that have nothing open any more, and how many calls of all ranks were committed by then."""
        self.rendezvous: dict[Any, Rendezvous] = {}
        self.revoked: dict[int, float] = {}  # contexts, and when
        self._delays = delays
        self._random = None if seed is None else random.Random(seed)
        self._spread = spread
        self._sent: dict[tuple[int, int], int] = {}
        self._posted: dict[Route, deque[Transfer]] = {}
        self._expected: dict[Route, deque[Transfer]] = {}
        self._last_due: dict[Route, float] = {}
        self._due: list[list[tuple[float, Transfer, Transfer]]] = [[] for _ in range(size)]
        self._collectives: dict[tuple[int, int], _Collective] = {}
        self._mailboxes: dict[tuple[int, int], list[Notice]] = {}

    def mailbox(self, context: int, rank: int) -> list[Notice]:
        return self._mailboxes.setdefault((context, rank), [])

    def part(self, key: tuple[int, int], members: list[int]) -> LoopbackWorld:
        """Return a world of some of the ranks, the same for the same key, with this one's delays."""
        with self.lock:
            if key not in self._parts:
                delays, seed = self._delays, self._seed
                self._parts[key] = LoopbackWorld(
                    len(members),
                    seed=None if seed is None else hash((seed, key)),
                    spread=self._spread,
                    delays=None if delays is None else lambda s, r, count: delays(members[s], members[r], count),
                )
                root, ranks = self.of_the_job
                self._parts[key].of_the_job = (root, [ranks[member] for member in members])
                self._parts[key].failure = self.failure and (-1, self.failure[1])
            return self._parts[key]

    def fail(self, rank: int, reason: str) -> None:
        """Make every rank that waits, now or later, stop with this reason."""
        with self.lock:
            if self.failure is None:
                self.failure = (rank, reason)
            for awake in self.awake:
                awake.notify_all()
            parts = list(self._parts.values())
        for part in parts:
            part.fail(-1, reason if rank < 0 else f"rank {rank} of {self.size} failed: {reason}")

    def kill(self, rank: int) -> None:
        """A rank of the job dies: from now on it does nothing, and ranks that wait for it get RanksLost."""
        with self.lock:
            if rank in self.dead:
                return
            self.dead[rank] = time.monotonic()
            for meeting in self.rendezvous.values():
                meeting.complete(self.dead)
        self._wake_all()

    def _wake_all(self) -> None:
        with self.lock:
            for awake in self.awake:
                awake.notify_all()
            parts = list(self._parts.values())
        for part in parts:
            part._wake_all()

    def end(self, rank: int) -> None:
        """This rank's program is over: ranks that wait for it hear of it."""
        with self.lock:
            self.rolls[rank].ended = True
        self.rolls[rank].listen()

    def check(self, rank: int) -> None:
        if self.failure is not None and self.failure[0] != rank:
            who = f"rank {self.failure[0]} stopped" if self.failure[0] >= 0 else "all ranks were stopped"
            raise PeerFailed(f"rank {rank}: {who}: {self.failure[1]}")

    # All methods below are called with the lock held.

    def lost(self, rank: int) -> list[int]:
        """Return the members that have died, as far as a rank knows by now."""
        root, ranks = self.of_the_job
        if not root.dead:
            return []
        assert root.faults is not None
        now = time.monotonic()
        return [
            member
            for member, its in enumerate(ranks)
            if its in root.dead and now >= root.dead[its] + root.faults.latency(ranks[rank], its)
        ]

    def revoke_all(self) -> None:
        """Revoke this communicator itself, with all that is or will be made of it."""
        with self.lock:
            self.revoke(EVERY_CONTEXT)

    def revoke(self, context: int) -> None:
        self.revoked.setdefault(context, time.monotonic())
        for awake in self.awake:
            awake.notify_all()

    def check_alive(self, rank: int, context: int, peer: int | None = None) -> None:
        """Raise RanksLost where a rank that is needed has died, or all has been revoked because some rank has.

        Args:
            peer: the rank that is needed; None: every rank of this world.
        """
        root, ranks = self.of_the_job
        if root.faults is None:
            return
        if ranks[rank] in root.dead:
            raise Killed(ranks[rank])
        lost = self.lost(rank)
        if lost and (peer is None or peer in lost):
            raise RanksLost(f"rank {rank}: rank {', '.join(map(str, lost))} has died")
        if any(
            one in self.revoked and time.monotonic() >= self.revoked[one] + root.faults.latency(rank, one)
            for one in (context, EVERY_CONTEXT)
        ):
            raise RanksLost(f"rank {rank}: another rank says that ranks have died")

    def post(self, route: Route, transfer: Transfer) -> None:
        small = transfer.data.size <= EAGER_BYTES and not transfer.matched
        queue = self._posted.setdefault(route, deque())
        if small and sum(other.ticket.done for other in queue) < EAGER_SLOTS:
            transfer.data = transfer.data.copy()
            transfer.ticket.done = True
        queue.append(transfer)
        self._match(route)

    def expect(self, route: Route, transfer: Transfer) -> None:
        transfer.data[:] = 0xFF
        self._expected.setdefault(route, deque()).append(transfer)
        if route[1] != ANY:
            self._match(route)
            return
        for source in range(self.size):
            self._match((route[0], source, *route[2:]))

    def cancel(self, ticket: Ticket) -> None:
        for queue in self._expected.values():
            for transfer in [one for one in queue if one.ticket is ticket]:
                queue.remove(transfer)

    def _match(self, route: Route) -> None:
        posted = self._posted.get(route)
        while posted and (expected := self._expected.get(route) or self._expected.get((route[0], ANY, *route[2:]))):
            send, receive = posted.popleft(), expected.popleft()
            if send.data.size > receive.data.size:
                raise MismatchError(
                    f"a message of {send.data.size} bytes from rank {route[1]} met a receive of {receive.data.size} "
                    f"bytes on rank {route[2]}: their parameters have other shapes, strides or dtypes"
                )
            due = max(time.monotonic() + self._late(route), self._last_due.get(route, 0.0))
            self._last_due[route] = due
            self._due[route[2]].append((due, send, receive))
            self.awake[route[2]].notify_all()

    def _late(self, route: Route) -> float:
        pair = route[1:3]
        count = self._sent.get(pair, 0)
        self._sent[pair] = count + 1
        if self._delays is not None:
            return self._delays(*pair, count)
        return self._random.uniform(0.0, self._spread) if self._random is not None else 0.0

    def deliver(self, rank: int) -> float | None:
        """Complete what is due to a rank; return the time at which the next is."""
        now = time.monotonic()
        waiting = []
        for item in self._due[rank]:
            due, send, receive = item
            if due > now:
                waiting.append(item)
                continue
            receive.data[: send.data.size] = send.data
            send.ticket.done = receive.ticket.done = True
            self.awake[send.rank].notify_all()
        self._due[rank] = waiting
        return min((due for due, _, _ in waiting), default=None)

    def join(self, key: tuple[int, int], rank: int, kind: str, value: Any, ticket: Ticket) -> _Collective:
        collective = self._collectives.setdefault(key, _Collective(kind))
        if collective.kind != kind:
            raise MismatchError(
                f"rank {rank} called {kind} where another rank called {collective.kind} (collective {key[1]} of a "
                "communicator). Over MPI the ranks would hang here. Make the same collective calls in the same order "
                "on every rank"
            )
        collective.values[rank] = value
        collective.tickets.append(ticket)
        if len(collective.values) == self.size:
            collective.complete(self.size)
            del self._collectives[key]
            for awake in self.awake:
                awake.notify_all()
        return collective


class _Post:
    """Carries the questions of one rank. Questions to a rank that has ended are answered at once."""

    def __init__(self, world: LoopbackWorld, rank: int) -> None:
        self._world = world
        self.me = rank

    def send(self, to: int, message: Message) -> None:
        with self._world.lock:
            over = self._world.rolls[to].ended and "answer" not in message
            if not over:
                self._world.questions[to].append(message)
        if over:
            message = self._world.rolls[to].answer(message)
            with self._world.lock:
                self._world.questions[self.me].append(message)

    def receive(self) -> list[Message]:
        with self._world.lock:
            messages, self._world.questions[self.me] = self._world.questions[self.me], []
            return messages


class Transfer:
    __slots__ = ("data", "matched", "rank", "ticket")

    def __init__(
        self, ticket: Ticket, data: np.ndarray[Any, np.dtype[np.uint8]], rank: int, matched: bool = False
    ) -> None:
        self.ticket = ticket
        self.matched = matched
        self.data = data
        self.rank = rank


class _Collective:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.values: dict[int, Any] = {}
        self.tickets: list[Ticket] = []

    def complete(self, size: int) -> None:
        values = [self.values[rank] for rank in range(size)]
        if self.kind == "sum":
            total = np.sum(np.stack(values), axis=0)
            for value in values:
                value[...] = total
        elif self.kind == "gather":
            for _, everyone in values:
                for rank, (own, _) in enumerate(values):
                    everyone[rank] = own
        elif self.kind.startswith("broadcast"):
            root = int(self.kind.split()[-1])
            for rank, value in enumerate(values):
                if rank != root:
                    value[...] = values[root]
        for ticket in self.tickets:
            ticket.done = True
