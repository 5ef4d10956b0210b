"""Messages between the processes of a job of torch.distributed."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from ...buffers import DeviceBytes
from ...errors import ClosedError, MismatchError, PeerFailed
from ...job.process_groups import GroupComm
from ..base import ANY, Notice, Ticket, Transport
from ..set_up import TIMEOUT, LogStalls
from ..waiting import Report
from . import by_messages
from .contexts import Arrival
from .job import mesh_of, roll_of
from .looks import Looks
from .mesh import gone

__all__ = ["TorchTransport"]

NOTICE_TAG = -1
FIRST_COLLECTIVE_TAG = -2
"""Collective number c has the tag that lies c below this one; tags of messages are not below 0."""
NOTICE = struct.Struct("<?qq")
REASON_BYTES = 1000
LONGEST_SLEEP_S = 0.05


class TorchTransport(Transport):
    """See :class:`~pushsum_opt.transport.Transport`. The first one over some ranks connects them.

    Args:
        comm: the ranks.
        timeout: seconds that the others have to come, where they are not connected yet.
        report: told of waits and stalls.
    """

    threaded = concurrent = True

    def __init__(self, comm: GroupComm, timeout: float = TIMEOUT, report: Report | None = None) -> None:
        self.rank, self.size = comm.rank, comm.size
        self.clock = comm.clock
        self.name = f"torch.distributed (gloo), {comm.job.why}"
        self._mesh = mesh_of(comm, timeout, report or LogStalls(comm.job.rank))
        self._numbers = [self._mesh.ranks.index(its) for its in comm.ranks]  # of its ranks in the mesh
        self._place = {number: rank for rank, number in enumerate(self._numbers)}
        self.progress = self._progress = roll_of(comm.job).set_up(comm.ranks)[1]
        self.context = hashlib.blake2b(self._progress.channel.encode(), digest_size=16).digest()
        self._arrived: dict[int, list[Arrival]] = {}
        self._expected: dict[int, list[Ticket]] = {}
        self._tickets: set[Ticket] = set()
        self._ended: deque[tuple[Ticket, Exception | None]] = deque()
        self._running: deque[tuple[Ticket, by_messages.Steps, list[Ticket]]] = deque()
        self._inbox: list[Notice] = []
        self._moved = threading.Event()
        self._looks = Looks()
        self._closed = False
        self._mesh.open(self.context, self)

    # ------------------------------------------------------------------ messages

    def post(self, buffer: Any, peer: int, tag: int, what: str, matched: bool = False) -> Ticket:
        ticket = self._track(Ticket(what, peer, buffer, sends=True))
        self._send(ticket, tag, matched)
        return ticket

    def expect(self, buffer: Any, peer: int, tag: int, what: str) -> Ticket:
        ticket = self._track(Ticket(what, peer, buffer))
        self._receive(ticket, tag)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        with self._mesh.lock:
            for waiting in self._expected.values():
                if ticket in waiting:
                    waiting.remove(ticket)
            self._tickets.discard(ticket)

    def _track(self, ticket: Ticket) -> Ticket:
        self._refuse_closed()
        self._tickets.add(ticket)
        return ticket

    def _send(self, ticket: Ticket, tag: int, whole: bool = False) -> None:
        assert ticket.peer is not None
        to = self._numbers[ticket.peer]
        self._mesh.send(to, self.context, tag, _flat(ticket.buffer), whole, lambda error: self._end(ticket, error))

    def _receive(self, ticket: Ticket, tag: int) -> None:
        with self._mesh.lock:
            there = self._arrived.get(tag, [])
            for arrival in there:
                if ticket.peer in (ANY, self._place[arrival.source]):
                    there.remove(arrival)
                    if not there:
                        del self._arrived[tag]
                    self._take(arrival, ticket)
                    return
            self._expected.setdefault(tag, []).append(ticket)

    def arrived(self, arrival: Arrival) -> None:
        """A frame has come. Called with the lock of the mesh held."""
        if arrival.tag == NOTICE_TAG:
            self._hear(arrival)
            return
        waiting = self._expected.get(arrival.tag, [])
        for ticket in waiting:
            if ticket.peer in (ANY, self._place[arrival.source]):
                waiting.remove(ticket)
                if not waiting:
                    del self._expected[arrival.tag]
                self._take(arrival, ticket)
                return
        self._arrived.setdefault(arrival.tag, []).append(arrival)

    def _take(self, arrival: Arrival, ticket: Ticket) -> None:
        buffer = _flat(ticket.buffer)
        if arrival.length > buffer.nbytes:
            self._end(ticket, self._does_not_fit(arrival, ticket, buffer.nbytes))
            return
        if arrival.by_nccl != isinstance(buffer, DeviceBytes):
            self._end(ticket, self._lies_elsewhere(arrival, ticket))
            return
        self._mesh.receive(arrival, buffer, lambda error: self._end(ticket, error))

    def _does_not_fit(self, arrival: Arrival, ticket: Ticket, room: int) -> Exception:
        sender = self.job_rank(self._place[arrival.source])
        return MismatchError(
            f"rank {self.job_rank()}: a message from rank {sender} does not fit what was expected ({ticket.what}: "
            f"{room} bytes, got {arrival.length}): its parameters have other shapes, strides or dtypes than here"
        )

    def _lies_elsewhere(self, arrival: Arrival, ticket: Ticket) -> Exception:
        sender, me = self.job_rank(self._place[arrival.source]), self.job_rank()
        by_nccl, by_gloo = (sender, me) if arrival.by_nccl else (me, sender)
        return MismatchError(
            f"rank {me}: a message from rank {sender} ({ticket.what}) is in GPU memory for NCCL on rank {by_nccl}, "
            f"and in host memory for gloo on rank {by_gloo}: PUSHSUM_NCCL must be the same on all ranks, and with 1 "
            "each tensor must be on the GPU on all ranks or on none"
        )

    def _end(self, ticket: Ticket, error: Exception | None = None) -> None:
        """A transfer is over; the next poll says so. By any thread."""
        self._ended.append((ticket, error))
        self._moved.set()

    # ------------------------------------------------------------------ collectives

    def broadcast(self, buffer: Any, root: int, what: str) -> Ticket:
        data = _flat(buffer)
        return self._collective(what, buffer, lambda messages: by_messages.broadcast(messages, data, root))

    def sum(self, values: Any, what: str) -> Ticket:
        return self._collective(what, values, lambda messages: by_messages.sum_up(messages, values))

    def gather(self, mine: bytes, what: str) -> tuple[Ticket, Any]:
        everyone = np.empty((self.size, len(mine)), np.uint8)
        everyone[self.rank] = np.frombuffer(mine, np.uint8)
        return self._collective(what, everyone, lambda messages: by_messages.gather(messages, everyone)), everyone

    def barrier(self, what: str) -> Ticket:
        return self.gather(b"\0", what)[0]

    def _collective(self, what: str, buffer: Any, steps: Any) -> Ticket:
        self._refuse_closed()
        self.collectives += 1
        self._progress.reach_collective(self.collectives)
        ticket = self._track(Ticket(what, None, buffer, collective=self.collectives))
        self._running.append((ticket, steps(_OneCollective(self, self.collectives, what)), []))
        self._advance()
        return ticket

    def _advance(self) -> bool:
        """Go on with every collective as far as it is possible; tell whether the first one has ended."""
        for _, steps, pending in self._running:
            while all(ticket.done for ticket in pending):
                following = next(steps, None)
                if following is None:
                    pending[:] = [_OVER]
                    break
                pending[:] = following
        ended = False
        while self._running and self._running[0][2] == [_OVER]:  # in the order in which they were begun
            ticket = self._running.popleft()[0]
            self._finish(ticket)
            ended = True
        return ended

    # ------------------------------------------------------------------ progress

    @property
    def under_way(self) -> int:
        return len(self._tickets)

    def poll(self, seconds: float) -> bool:
        begin = time.monotonic()
        while True:
            self._moved.clear()
            if self._take_in():
                self._looks.restart()
                return True
            self._look_for_the_dead()
            waited = time.monotonic() - begin
            if self._inbox or waited >= seconds:
                return False
            self._moved.wait(min(seconds - waited, LONGEST_SLEEP_S))

    def _take_in(self) -> bool:
        """See which transfers are over; tell whether there are any. Those of a collective are progress, too."""
        moved = False
        while self._ended:
            ticket, error = self._ended.popleft()
            if error is not None and self._inbox:  # which may tell why it went wrong
                self._ended.appendleft((ticket, error))
                break
            if error is not None:
                self._tickets.discard(ticket)
                raise self._explain(ticket, error)
            self._finish(ticket)
            moved = True
        return self._advance() or moved

    def _finish(self, ticket: Ticket) -> None:
        self._tickets.discard(ticket)
        ticket.done = True
        ticket.buffer = None

    def _explain(self, ticket: Ticket, error: Exception) -> Exception:
        if isinstance(error, MismatchError | PeerFailed) or ticket.peer is None or ticket.peer < 0:
            return error
        return PeerFailed(gone(self.job_rank(), self.job_rank(ticket.peer), error))

    def _look_for_the_dead(self) -> None:
        """Raise PeerFailed where a rank has died that something is to come from, or to be taken by."""
        if not self._tickets or not self._looks.due():
            return
        peers = {ticket.peer for ticket in self._tickets if ticket.peer is not None and ticket.peer >= 0}
        if self._running:
            peers = set(range(self.size))
        for peer in sorted(peers):
            if self._mesh.is_gone(self._numbers[peer]):
                if self._ended or self._inbox:  # what it did before may be all that is needed
                    return
                raise PeerFailed(gone(self.job_rank(), self.job_rank(peer)))

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ClosedError(f"rank {self.job_rank()}: the transport over torch.distributed is already closed")

    # ------------------------------------------------------------------ notices

    def tell(self, peers: Iterable[int], notice: Notice) -> None:
        self._refuse_closed()
        reason = notice.reason.encode("utf-8", "replace")[:REASON_BYTES]
        word = np.frombuffer(NOTICE.pack(notice.failed, notice.rounds, notice.collectives) + reason, np.uint8)
        for peer in peers:
            if peer != self.rank:
                with contextlib.suppress(PeerFailed):
                    self._mesh.send(self._numbers[peer], self.context, NOTICE_TAG, word, False, lambda error: None)
        if notice.failed:
            self._mesh.give_up(self.context)

    def _hear(self, arrival: Arrival) -> None:
        assert arrival.data is not None
        failed, rounds, collectives = NOTICE.unpack_from(arrival.data)
        reason = arrival.data[NOTICE.size :].decode("utf-8", "replace")
        self._inbox.append(Notice(self._place[arrival.source], failed, rounds, collectives, reason))
        self._moved.set()

    def stopped(self, source: int, reason: str) -> None:
        """A process of the job stops with an error. Called with the lock of the mesh held."""
        if source in self._place:
            self._inbox.append(Notice(self._place[source], True, 0, 0, reason))
            self._moved.set()

    def notices(self) -> list[Notice]:
        with self._mesh.lock:
            inbox, self._inbox = self._inbox, []
        return inbox

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._mesh.close(self.context)


_OVER = Ticket("a collective that is over", None, None)


class _OneCollective:
    """The messages of one collective; see :class:`pushsum_opt.transport.torch_distributed.by_messages.Messages`."""

    def __init__(self, transport: TorchTransport, number: int, what: str) -> None:
        self.rank, self.size = transport.rank, transport.size
        self._transport = transport
        self._tag = FIRST_COLLECTIVE_TAG - number
        self._what = what

    def post(self, data: Any, peer: int) -> Ticket:
        ticket = Ticket(self._what, peer, data, sends=True)
        self._transport._send(ticket, self._tag)
        return ticket

    def expect(self, data: Any, peer: int) -> Ticket:
        ticket = Ticket(self._what, peer, data)
        self._transport._receive(ticket, self._tag)
        return ticket


def _flat(buffer: Any) -> Any:
    """Return any contiguous buffer in host memory as a flat uint8 array that shares its memory; GPU memory as it is."""
    if isinstance(buffer, DeviceBytes):
        return buffer
    if isinstance(buffer, np.ndarray):
        return buffer.reshape(-1).view(np.uint8)
    return np.frombuffer(buffer, np.uint8)
