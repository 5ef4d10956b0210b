"""Messages in GPU memory between processes over torch.distributed: gloo says when, NCCL moves the bytes.

A message of NCCL is a kernel on both GPUs. Each half waits there for the other one, cannot be taken back, and must come
in the same order on both sides. So the mesh keeps who sends what to whom, as it does for host memory, and NCCL is only
given what both sides are ready for:

1. a frame of the sender says that a message waits in GPU memory;
2. once the receiver has a buffer for it, it answers that the way is clear, and begins;
3. the sender begins when it hears that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ..buffers import DeviceBytes
from ..errors import PeerFailed
from .nccl import CupyNccl
from .torch_nccl import Link, Nccl, Transfer
from .torch_waits import Done, Waits

__all__ = ["DeviceMessages", "Ends"]

GIVE_UP_S = 5.0
"""Seconds that transfers which nobody wants any more have to end."""

make_nccl: Callable[[], Nccl] = CupyNccl


class Ends(Protocol):
    """What is needed of the mesh."""

    lock: threading.RLock

    def say_clear(self, to: int, number: int, id: bytes) -> None:
        """Let a process send a message.

        Raises:
            PeerFailed: it has died.
        """

    def why_gone(self, peer: int) -> str | None:
        """Say of a process that it has died; None where it has not."""

    def job_rank(self, number: int | None = None) -> int:
        """Return the rank of a process, or of this one, in the job."""


class _Uncleared(NamedTuple):
    context: bytes
    buffer: DeviceBytes
    done: Done


class DeviceMessages:
    """All messages in GPU memory from and to this process.

    Args:
        ends: the mesh.
        waits: whose threads do the transfers.
    """

    def __init__(self, ends: Ends, waits: Waits) -> None:
        self._ends, self._waits = ends, waits
        self._nccl: Nccl | None = None
        self._links: dict[tuple[int, bool], Link] = {}
        self._uncleared: dict[tuple[int, int], _Uncleared] = {}
        self._under_way: dict[Transfer, bytes] = {}
        """The context of each."""

    def post(self, to: int, number: int, context: bytes, buffer: DeviceBytes, done: Done) -> None:
        """A message waits here until its receiver has a buffer for it."""
        with self._ends.lock:
            self._uncleared[to, number] = _Uncleared(context, buffer, done)

    def clear(self, source: int, number: int, context: bytes, buffer: DeviceBytes, done: Done) -> None:
        """There is a buffer for a message. Begin to receive, and let its sender begin."""
        with self._ends.lock:  # what is cleared begins there in the order in which it begins here
            try:
                link = self._link(source, sends=False)
                id = link.id()
                self._ends.say_clear(source, number, id)
            except Exception as error:
                done(error if isinstance(error, PeerFailed) else PeerFailed(f"{self._whom(source, False)}: {error}"))
                return
            self._carry(source, context, Transfer(link, id, buffer), done)

    def cleared(self, peer: int, number: int, id: bytes) -> None:
        """The receiver of a message begins. By the thread that hears the frames."""
        with self._ends.lock:
            context, buffer, done = self._uncleared.pop((peer, number))
            self._carry(peer, context, Transfer(self._link(peer, sends=True), id, buffer), done)

    def give_up(self, context: bytes | None = None) -> None:
        """End what is under way for a context, or for all: memory that a GPU still uses cannot be freed."""
        with self._ends.lock:
            given_up = {one for one, its in self._under_way.items() if context in (None, its)}
        for transfer in given_up:
            transfer.given_up = True
        deadline = time.monotonic() + GIVE_UP_S
        while time.monotonic() < deadline:
            with self._ends.lock:
                if not any(transfer.begun for transfer in given_up & self._under_way.keys()):
                    return
            time.sleep(1e-3)

    def _carry(self, peer: int, context: bytes, transfer: Transfer, done: Done) -> None:
        def over(error: Exception | None) -> None:
            with self._ends.lock:
                del self._under_way[transfer]
            done(error)

        self._under_way[transfer] = context
        self._waits.add(("link", peer, transfer.link.sends), (transfer,), over)

    def _link(self, peer: int, sends: bool) -> Link:
        link = self._links.get((peer, sends))
        if link is None:
            if self._nccl is None:
                self._nccl = make_nccl()
            link = Link(self._nccl, sends, lambda: self._ends.why_gone(peer), self._whom(peer, sends))
            self._links[peer, sends] = link
        return link

    def _whom(self, peer: int, sends: bool) -> str:
        way = "send GPU memory to" if sends else "receive GPU memory from"
        return f"rank {self._ends.job_rank()}: NCCL cannot {way} rank {self._ends.job_rank(peer)}"
