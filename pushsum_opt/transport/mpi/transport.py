"""Messages over MPI, through mpi4py, on a private duplicate of the user's communicator."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from mpi4py import MPI

from ...buffers import DeviceBytes
from ...errors import ClosedError, ConfigurationError, MismatchError, RanksLost
from ..base import ANY, Notice, Ticket, Transport
from ..naps import nap
from ..set_up import TIMEOUT, LogStalls
from ..waiting import Report
from . import fork
from .losses import FAULT_TOLERANT, LOST, who_is_lost
from .making import duplicate

__all__ = ["MpiTransport", "revoke_all"]

NOTICE_TAG = 1000
NOTICE_BYTES = 1024
NOTICE_HEAD = struct.Struct("<i?qqi")
HIGHEST_TAG = 32767
"""Every MPI library has tags up to this one; ours lie below it."""

# MPI writes into the buffers of an open transport whether or not anybody still refers to it.
_alive: set[MpiTransport] = set()
_sent_in_vain: list[Any] = []


class MpiTransport(Transport):
    """Non-blocking point-to-point messages and collectives, polled. Constructing one is collective.

    Args:
        comm: the communicator to duplicate; it is not used for anything else.
        timeout: seconds that the other ranks have to make theirs.
        report: told of waits and stalls.
    """

    name = "mpi"

    def __init__(self, comm: MPI.Comm, timeout: float = TIMEOUT, report: Report | None = None) -> None:
        highest = comm.Get_attr(MPI.TAG_UB)
        if highest is not None and highest < HIGHEST_TAG:
            raise ConfigurationError(f"this MPI library allows tags up to {highest}: expected at least {HIGHEST_TAG}")
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self._comm, self.progress = duplicate(comm, timeout, report or LogStalls(self.rank))
        self._requests: list[MPI.Request] = []
        self._tickets: list[Ticket] = []
        self._inbox: list[Notice] = []
        self._notice = bytearray(NOTICE_BYTES)
        self._listening: Ticket | None = None
        self._closed = False
        self._has_failed = False  # some rank has said so here
        self.threaded = MPI.Query_thread() >= MPI.THREAD_SERIALIZED
        self.concurrent = MPI.Query_thread() >= MPI.THREAD_MULTIPLE
        _alive.add(self)
        fork.watch(self.rank, self.size)
        if self.size > 1:
            self._listen()

    # ------------------------------------------------------------------ messages

    def post(self, buffer: Any, peer: int, tag: int, what: str, matched: bool = False) -> Ticket:
        send = self._open().Issend if matched or FAULT_TOLERANT else self._open().Isend
        request = self._begin(send, [_bytes(buffer), MPI.BYTE], peer, tag)
        return self._track(Ticket(what, peer, buffer, sends=True, request=request))

    def expect(self, buffer: Any, peer: int, tag: int, what: str) -> Ticket:
        source = MPI.ANY_SOURCE if peer == ANY else peer
        request = self._begin(self._open().Irecv, [_bytes(buffer), MPI.BYTE], source, tag)
        return self._track(Ticket(what, peer, buffer, request=request))

    def cancel(self, ticket: Ticket) -> None:
        if ticket.request is not None:
            self._forget(ticket)
            ticket.request.Cancel()
            ticket.request.Wait()
            ticket.request = ticket.buffer = None

    def _forget(self, ticket: Ticket) -> None:
        index = self._tickets.index(ticket)
        del self._tickets[index], self._requests[index]

    # ------------------------------------------------------------------ collectives

    def broadcast(self, buffer: Any, root: int, what: str) -> Ticket:
        return self._collective(self._begin(self._open().Ibcast, [buffer, MPI.BYTE], root), buffer, what)

    def sum(self, values: Any, what: str) -> Ticket:
        kind = MPI.FLOAT if values.dtype == np.float32 else MPI.DOUBLE
        request = self._begin(self._open().Iallreduce, MPI.IN_PLACE, [values, kind], MPI.SUM)
        return self._collective(request, values, what)

    def gather(self, mine: bytes, what: str) -> tuple[Ticket, Any]:
        everyone = np.empty((self.size, len(mine)), np.uint8)
        own = np.frombuffer(mine, np.uint8)
        request = self._begin(self._open().Iallgather, [own, MPI.BYTE], [everyone, MPI.BYTE])
        return self._collective(request, (own, everyone), what), everyone

    def barrier(self, what: str) -> Ticket:
        return self._collective(self._begin(self._open().Ibarrier), None, what)

    def _begin(self, call: Callable[..., MPI.Request], *args: Any) -> MPI.Request:
        try:
            return call(*args)
        except MPI.Exception as error:
            raise self._explain(error) from error

    def _collective(self, request: MPI.Request, buffer: Any, what: str) -> Ticket:
        self.collectives += 1
        if self.progress is not None:
            self.progress.reach_collective(self.collectives)
        return self._track(Ticket(what, None, buffer, collective=self.collectives, request=request))

    # ------------------------------------------------------------------ progress

    @property
    def under_way(self) -> int:
        return len(self._tickets) - (self._listening is not None)

    @property
    def bytes_under_way(self) -> int:
        return sum(_count_bytes(ticket.buffer) for ticket in self._tickets)

    def poll(self, seconds: float) -> bool:
        begin = time.monotonic()
        while True:
            if self._advance():
                return True
            waited = time.monotonic() - begin
            if self._inbox or waited >= seconds:
                return False
            nap(waited)

    def _advance(self) -> bool:
        if not self._requests:
            return False
        try:
            if FAULT_TOLERANT:
                finished = [*self._received(), *self._sent()]
            else:
                # Open MPI tests first and makes progress afterwards: only a second test sees what that has brought.
                finished = MPI.Request.Testsome(self._requests) or MPI.Request.Testsome(self._requests) or []
        except MPI.Exception as error:
            raise self._explain(error) from error
        if not finished:
            return False
        for index in finished:
            ticket = self._tickets[index]
            ticket.done = True
            ticket.request = ticket.buffer = None
        left = [index for index, ticket in enumerate(self._tickets) if not ticket.done]
        self._requests = [self._requests[index] for index in left]
        self._tickets = [self._tickets[index] for index in left]
        if self._listening is not None and self._listening.done:
            self._hear()
            return len(finished) > 1
        return True

    def _received(self) -> list[int]:
        places = [place for place, ticket in enumerate(self._tickets) if not ticket.sends]
        found = MPI.Request.Testsome([self._requests[place] for place in places])
        return [places[index] for index in found or ()]

    def _sent(self) -> list[int]:
        """Return the sends that are over.

        A test that finds a failed send frees its request, and Open MPI ends the job where it then has still something
        to do for it ("Send error after request freed"). So failed ones are asked, and never freed.
        """
        found, status = [], MPI.Status()
        for place, ticket in enumerate(self._tickets):
            if ticket.sends and self._requests[place].Get_status(status):
                if status.Get_error() in LOST:
                    raise RanksLost(f"rank {self.rank}: a message to rank {ticket.peer} failed: ranks have died")
                self._requests[place].Test()
                found.append(place)
        return found

    def _explain(self, error: MPI.Exception) -> Exception:
        if (lost := who_is_lost(self._comm, error)) is not None:
            return RanksLost(f"rank {self.rank}: {lost}")
        if "trunc" in str(error).lower() or error.Get_error_class() in (MPI.ERR_TRUNCATE, MPI.ERR_IN_STATUS):
            peers = sorted({t.peer for t in self._tickets if t.peer not in (None, ANY) and not t.sends})
            return MismatchError(
                f"rank {self.rank}: a message from one of the ranks {peers} does not fit what was expected "
                f"({str(error).strip()}): its parameters have other shapes, strides or dtypes than on this rank, or "
                "that rank has died"
            )
        return error

    def _track(self, ticket: Ticket) -> Ticket:
        self._requests.append(ticket.request)
        self._tickets.append(ticket)
        return ticket

    # ------------------------------------------------------------------ notices

    def tell(self, peers: Iterable[int], notice: Notice) -> None:
        comm = self._open()
        self._has_failed = self._has_failed or notice.failed
        message = bytearray(NOTICE_BYTES)
        reason = notice.reason.encode("utf-8", "replace")[: NOTICE_BYTES - NOTICE_HEAD.size]
        head = (notice.sender, notice.failed, notice.rounds, notice.collectives, len(reason))
        NOTICE_HEAD.pack_into(message, 0, *head)
        message[NOTICE_HEAD.size : NOTICE_HEAD.size + len(reason)] = reason
        for peer in peers:
            if peer != self.rank:
                send = comm.Issend if FAULT_TOLERANT else comm.Isend
                request = self._begin(send, [message, MPI.BYTE], peer, NOTICE_TAG)
                self._track(Ticket("a notice to be taken", peer, message, sends=True, request=request))

    def notices(self) -> list[Notice]:
        inbox, self._inbox = self._inbox, []
        return inbox

    def _listen(self) -> None:
        request = self._begin(self._comm.Irecv, [self._notice, MPI.BYTE], MPI.ANY_SOURCE, NOTICE_TAG)
        self._listening = self._track(Ticket("a notice", None, self._notice, request=request))

    def _hear(self) -> None:
        sender, failed, rounds, collectives, length = NOTICE_HEAD.unpack_from(self._notice)
        reason = bytes(self._notice[NOTICE_HEAD.size : NOTICE_HEAD.size + length]).decode("utf-8", "replace")
        self._has_failed = self._has_failed or bool(failed)
        self._inbox.append(Notice(sender, failed, rounds, collectives, reason))
        self._listen()

    # ------------------------------------------------------------------ the end

    def revoke(self) -> None:
        if not self._closed:
            with contextlib.suppress(MPI.Exception):
                self._comm.Revoke()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if MPI.Is_finalized():
            _alive.discard(self)
            return
        if FAULT_TOLERANT and (self._comm.Is_revoked() or self._comm.Get_failed().Get_size()):
            self._abandon()  # to free it, all ranks would have to come
            return
        if self._listening is not None:
            self.cancel(self._listening)
        if not self._requests and not self._has_failed:
            # After an error it is not freed. With transfers left over, that could wait for a peer that is gone. And
            # what a peer has sent here and nobody has taken would come to the next communicator that gets its number
            # (MPICH gives the smallest free one).
            self._comm.Free()
            _alive.discard(self)

    def _abandon(self) -> None:
        """Give up what is under way on a revoked communicator: all of it fails now.

        What was to be received no longer uses its buffer. What was sent may, so it is kept; see :meth:`_sent`.
        """
        for ticket, request in zip(self._tickets, self._requests, strict=True):
            if ticket.sends:
                _sent_in_vain.append((request, ticket.buffer))
                continue
            with contextlib.suppress(MPI.Exception):
                if not request.Test():
                    _sent_in_vain.append((request, ticket.buffer))
        self._tickets, self._requests = [], []
        _alive.discard(self)

    def _open(self) -> MPI.Comm:
        if self._closed:
            raise ClosedError(f"rank {self.rank}: the MPI transport is already closed")
        return self._comm


def revoke_all() -> None:
    """Revoke every transport of this process: some rank has died."""
    for transport in tuple(_alive):
        transport.revoke()


def _count_bytes(buffer: Any) -> int:
    """Return how many bytes a ticket's buffer holds; 0 for a notice, which is small, and for a barrier."""
    if isinstance(buffer, tuple):
        return sum(map(_count_bytes, buffer))
    return getattr(buffer, "nbytes", 0)


def _bytes(buffer: Any) -> Any:
    """Return what mpi4py takes: memory of a device by its address, which only the MPI library will follow."""
    return MPI.buffer.fromaddress(buffer.address, buffer.nbytes) if isinstance(buffer, DeviceBytes) else buffer
