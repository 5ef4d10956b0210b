"""NCCL between two processes, in one direction: a *link*.

Each link has a connection of its own, a communicator of two ranks. So its transfers need no order but their own; and
where it has to be given up, which NCCL can do only with a whole communicator, no other one is touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..buffers import DeviceBytes
from ..errors import PeerFailed
from .naps import nap

__all__ = ["Connection", "Link", "Nccl", "Transfer"]

LOOK_FOR_THE_DEAD_AFTER_S = 0.25
LOOK_FOR_THE_DEAD_EVERY_S = 30.0
"""A transfer looks whether the other process has died after the first of these times, then after twice the time each,
and at least as often as the second says."""


class Connection(Protocol):
    """Two processes connected in one direction. One thread at a time uses it."""

    def begin(self, buffer: DeviceBytes) -> None:
        """Begin to send or to receive all of the buffer."""

    def done(self) -> bool:
        """Tell whether the last transfer is over; raise what has gone wrong."""

    def abort(self) -> None:
        """End what is under way, whatever the other process does. The connection is of no use any more."""


class Nccl(Protocol):
    """What is needed of NCCL."""

    def new_id(self) -> bytes:
        """Return what two processes need to find each other."""

    def connect(self, id: bytes, sends: bool, buffer: DeviceBytes) -> Connection:
        """Connect on the device of a buffer; returns when the other process has done the same."""


class Link:
    """The transfers from this process to another one, or from that one here. One thread at a time carries them.

    Args:
        gone: says of the other process that it has died, or None.
        whom: the two ranks, in words that follow "rank r: NCCL cannot ...".
    """

    def __init__(self, nccl: Nccl, sends: bool, gone: Callable[[], str | None], whom: str) -> None:
        self.sends = sends
        self._nccl, self._gone, self._whom = nccl, gone, whom
        self._id = self._broken = b""
        self._connection: Connection | None = None
        self._connected_by = b""

    def id(self) -> bytes:
        """Return the name of the connection for the next transfer. The receiver chooses it; one that broke is left."""
        if self._id == self._broken:
            self._id = self._nccl.new_id()
        return self._id

    def carry(self, transfer: Transfer) -> None:
        """Do a transfer from its beginning to its end.

        Raises:
            PeerFailed: it was given up, the other process has died, or NCCL cannot do it.
        """
        try:
            with transfer.buffer.device.in_use():
                transfer.buffer.device.let_captures_be()
                self._carry(transfer)
        except PeerFailed:
            self._break(transfer.id)
            raise
        except Exception as error:
            self._break(transfer.id)
            raise PeerFailed(self._gone_by_now() or f"{self._whom}: {error}. {ADVICE}") from error

    def _gone_by_now(self) -> str | None:
        """Return why the other process is gone, where NCCL may have noticed it before gloo."""
        deadline = time.monotonic() + LOOK_FOR_THE_DEAD_AFTER_S
        while (why := self._gone()) is None and time.monotonic() < deadline:
            time.sleep(LOOK_FOR_THE_DEAD_AFTER_S / 10)
        return why

    def _carry(self, transfer: Transfer) -> None:
        if transfer.id == self._broken:
            raise PeerFailed(f"{self._whom}: their connection was given up, after an error or a close")
        connection = self._connection_for(transfer)
        transfer.begun = True  # before the question, so that whoever gives it up sees the one, or this sees the other
        if transfer.given_up:
            raise PeerFailed(f"{self._whom}: it was given up")
        connection.begin(transfer.buffer)
        begin = time.monotonic()
        look_after = LOOK_FOR_THE_DEAD_AFTER_S
        look_at = begin + look_after
        while not connection.done():
            now = time.monotonic()
            if transfer.given_up:
                raise PeerFailed(f"{self._whom}: it was given up")
            if now >= look_at:
                look_after = min(LOOK_FOR_THE_DEAD_EVERY_S, 2 * look_after)
                look_at = now + look_after
                if (why := self._gone()) is not None:
                    raise PeerFailed(why)
            nap(now - begin)

    def _connection_for(self, transfer: Transfer) -> Connection:
        if self._connection is None or self._connected_by != transfer.id:
            self._drop()  # the receiver has chosen another one, so it has given up that one
            self._connection = self._nccl.connect(transfer.id, self.sends, transfer.buffer)
            self._connected_by = transfer.id
        return self._connection

    def _break(self, id: bytes) -> None:
        self._broken = id
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()


ADVICE = "NCCL_DEBUG=INFO lets it say more; without PUSHSUM_NCCL=1, GPU memory goes through the host"


@dataclass(eq=False)
class Transfer:
    """One message on a link. Waiting for it is what does it."""

    link: Link
    id: bytes
    """Of the connection."""
    buffer: DeviceBytes
    given_up: bool = False
    """Set by any thread: nobody wants it any more."""
    begun: bool = False
    """Its memory is in use until it is over."""

    def wait(self, limit: Any) -> None:
        self.link.carry(self)
