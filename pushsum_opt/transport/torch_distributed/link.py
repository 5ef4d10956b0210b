"""NCCL between two processes, in one direction: a *link*.

Each link has a connection of its own, a communicator of two ranks. So its transfers need no order but their own; and
where it has to be given up, which NCCL can do only with a whole communicator, no other one is touched. A link whose
connection was given up makes another one for the next transfer.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ...buffers import DeviceBytes
from ...errors import PeerFailed
from ..naps import nap
from .looks import Looks

__all__ = ["Connection", "Inward", "Link", "Nccl", "Outward", "Transfer"]

GLOO_NOTICES_S = 0.25
"""Seconds that gloo may take longer than NCCL to notice that a process has died."""
ABORT_S = 5.0
"""Seconds for which an abort is waited for. NCCL may wait in it for the other process."""
ADVICE = "NCCL_DEBUG=INFO lets it say more; without PUSHSUM_NCCL=1, GPU memory goes through the host"


class Connection(Protocol):
    """Two processes connected in one direction. One thread at a time uses it."""

    def begin(self, buffer: DeviceBytes) -> None:
        """Begin to send or to receive all of the buffer. The first time it may wait for the other process."""

    def done(self) -> bool:
        """Tell whether the last transfer is over; raise what has gone wrong."""

    def abort(self) -> None:
        """End what is under way, whatever the other process does, by any thread. It is of no use any more."""


class Nccl(Protocol):
    """What is needed of NCCL."""

    def new_id(self) -> bytes:
        """Return what two processes need to find each other."""

    def connect(self, id: bytes, sends: bool, buffer: DeviceBytes) -> Connection:
        """Connect on the device of a buffer; returns when the other process has done the same."""


@dataclass(eq=False)
class Transfer:
    """One message on a link. Waiting for it is what does it."""

    link: Link
    number: int
    """Of the message, among those of its sender to its receiver."""
    buffer: DeviceBytes
    id: bytes = b""
    """Of the connection. The receiver chooses it when it begins; the sender has heard it."""
    given_up: str = ""
    """Why nobody wants it any more; set by any thread."""
    begun: bool = False
    """Its memory is in use until it is over."""

    def wait(self, limit: Any) -> None:
        self.link.carry(self)


class Link(ABC):
    """The transfers from this process to another one, or from that one here, one after the other.

    Args:
        gone: says of the other process that it has died, or None.
        whom: the two ranks, as in "rank r: NCCL cannot send GPU memory to rank s".
    """

    sends: bool

    def __init__(self, nccl: Nccl, gone: Callable[[], str | None], whom: str) -> None:
        self._nccl, self._gone, self.whom = nccl, gone, whom
        self._connection: Connection | None = None
        self._connected_by = b""
        self._lock = threading.Lock()

    def carry(self, transfer: Transfer) -> None:
        """Do a transfer from its beginning to its end.

        Raises:
            PeerFailed: it was given up, the other process has died, or NCCL cannot do it.
        """
        try:
            transfer.buffer.device.let_captures_be()
            with transfer.buffer.device.in_use():
                self._wait(transfer, self._begin(transfer))
        except PeerFailed:
            self._break(transfer)
            raise
        except Exception as error:
            self._break(transfer)
            self._refuse_given_up(transfer)
            raise PeerFailed(
                self._gone_by_now() or f"{self.whom}: {type(error).__name__}: {error}. {ADVICE}"
            ) from error

    def _begin(self, transfer: Transfer) -> Connection:
        self._refuse_given_up(transfer)
        self._agree(transfer)
        if self._connection is None or self._connected_by != transfer.id:
            self.abort()  # the receiver has chosen another one, so it has given up that one
            self._connection = self._nccl.connect(transfer.id, self.sends, transfer.buffer)
            self._connected_by = transfer.id
        connection = self._connection
        transfer.begun = True  # before the question, so that whoever gives it up sees the one, or this sees the other
        self._refuse_given_up(transfer)
        connection.begin(transfer.buffer)
        return connection

    @abstractmethod
    def _agree(self, transfer: Transfer) -> None:
        """Both processes begin now, by the connection of this id."""

    def _wait(self, transfer: Transfer, connection: Connection) -> None:
        begin = time.monotonic()
        looks = Looks()
        while not connection.done():
            self._refuse_given_up(transfer)
            if looks.due() and (why := self._gone()) is not None:
                raise PeerFailed(why)
            nap(time.monotonic() - begin)

    def _refuse_given_up(self, transfer: Transfer) -> None:
        if transfer.given_up:
            raise PeerFailed(f"{self.whom}: {transfer.given_up}")

    def abort(self) -> None:
        """Give up the connection, and what is under way on it. By any thread."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            thread = threading.Thread(target=connection.abort, name="pushsum_opt aborts NCCL", daemon=True)
            thread.start()
            thread.join(ABORT_S)

    def _break(self, transfer: Transfer) -> None:
        self.abort()

    def _gone_by_now(self) -> str | None:
        """Return why the other process is gone, where NCCL may have noticed it before gloo."""
        deadline = time.monotonic() + GLOO_NOTICES_S
        while (why := self._gone()) is None and time.monotonic() < deadline:
            time.sleep(GLOO_NOTICES_S / 10)
        return why


class Inward(Link):
    """From another process here: this one says when a transfer begins, and by which connection.

    Args:
        say_clear: lets the sender begin with a message, given its number and the id of the connection.
    """

    sends = False

    def __init__(
        self, nccl: Nccl, gone: Callable[[], str | None], whom: str, say_clear: Callable[[int, bytes], None]
    ) -> None:
        super().__init__(nccl, gone, whom)
        self._say_clear = say_clear

    def _agree(self, transfer: Transfer) -> None:
        transfer.id = self._nccl.new_id() if self._connection is None else self._connected_by
        self._say_clear(transfer.number, transfer.id)


class Outward(Link):
    """To another process, which has said that it begins.

    Args:
        refuse: lets the receiver know that a message does not come, given its number.
    """

    sends = True

    def __init__(self, nccl: Nccl, gone: Callable[[], str | None], whom: str, refuse: Callable[[int], None]) -> None:
        super().__init__(nccl, gone, whom)
        self._refuse = refuse
        self._broken = b""
        """The id of a connection that was given up here. The receiver may not know of it yet."""

    def _agree(self, transfer: Transfer) -> None:
        if transfer.id == self._broken:
            raise PeerFailed(f"{self.whom}: their connection was given up, after an error or a close")

    def _break(self, transfer: Transfer) -> None:
        self._broken = transfer.id
        super()._break(transfer)
        self._refuse(transfer.number)  # between GPUs of one host NCCL does not notice that the other half has ended
