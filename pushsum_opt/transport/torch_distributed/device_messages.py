"""Messages in GPU memory between processes over torch.distributed: gloo says when, NCCL moves the bytes.

A message of NCCL is a kernel on both GPUs. Each half waits there for the other one, cannot be taken back, and must come
in the same order on both sides. So the mesh keeps who sends what to whom, as it does for host memory, and NCCL is only
given what both sides are ready for:

1. a frame of the sender says that a message waits in GPU memory;
2. once the receiver has a buffer for it, and receives nothing else, it answers that the way is clear, and begins;
3. the sender begins when it hears that, after what it has heard before.

So a process has one message of NCCL each way at a time: kernels of many communicators may not fit on a GPU together,
and then wait for each other for ever. No ranks wait in a circle: who has said that the way is clear receives nothing
else, so what its sender does before that comes to an end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from ...buffers import DeviceBytes
from ...errors import PeerFailed
from .link import Inward, Link, Nccl, Outward, Transfer
from .nccl import CupyNccl
from .waits import Done, Waits

__all__ = ["DeviceMessages", "Ends"]

GIVE_UP_S, ABORT_AFTER_S = 5.0, 1.0
"""Seconds that transfers which nobody wants any more have to end, and after which their connections are aborted, as the
thread that carries one may be waiting inside NCCL."""

make_nccl: Callable[[], Nccl] = CupyNccl


class Ends(Protocol):
    """What is needed of the mesh."""

    lock: threading.RLock

    def say_clear(self, to: int, number: int, id: bytes) -> None:
        """Let a process send a message.

        Raises:
            PeerFailed: it has died.
        """

    def refuse(self, to: int, number: int) -> None:
        """Tell a process, at best effort, that a message does not come for which it has said that the way is clear."""

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
        self._nccl: Nccl = make_nccl()
        self._links: dict[tuple[int, bool], Link] = {}
        self._uncleared: dict[tuple[int, int], _Uncleared] = {}
        self._under_way: dict[Transfer, tuple[bytes, Done]] = {}
        """The context of each, and who is told of its end."""

    def post(self, to: int, number: int, context: bytes, buffer: DeviceBytes, done: Done) -> None:
        """A message waits here until its receiver begins."""
        with self._ends.lock:
            self._uncleared[to, number] = _Uncleared(context, buffer, done)

    def receive(self, source: int, number: int, context: bytes, buffer: DeviceBytes, done: Done) -> None:
        """There is a buffer for a message. Receive it after those for which there was one before."""
        self._carry(context, Transfer(self._link(source, sends=False), number, buffer), done)

    def cleared(self, peer: int, number: int, id: bytes) -> None:
        """The receiver of a message begins."""
        with self._ends.lock:
            waiting = self._uncleared.pop((peer, number), None)
            if waiting is not None:
                context, buffer, done = waiting
                self._carry(context, Transfer(self._link(peer, sends=True), number, buffer, id), done)
                return
        self._ends.refuse(peer, number)

    def refused(self, peer: int, number: int) -> None:
        """A message does not come, whose sender had said that it waits."""
        with self._ends.lock:
            link = self._links.get((peer, False))
            refused = [one for one in self._under_way if one.link is link and one.number == number]
        for transfer in refused:
            transfer.given_up = "that one has given up the message, after an error or a close"
            if not transfer.begun:  # its thread may wait for ever for the other process, inside NCCL
                self._over(transfer, PeerFailed(f"{transfer.link.whom}: {transfer.given_up}"))

    def give_up(self, context: bytes | None = None) -> None:
        """End all that there is for a context, or for all contexts: memory that a GPU still uses cannot be freed."""
        with self._ends.lock:
            for place, waiting in tuple(self._uncleared.items()):
                if context in (None, waiting.context):
                    del self._uncleared[place]
            given_up = {one for one, (its, _) in self._under_way.items() if context in (None, its)}
        for transfer in given_up:
            transfer.given_up = "this one has given up the message, after an error or by a close"
        if self._all_over(given_up, ABORT_AFTER_S):
            return
        for link in {transfer.link for transfer in given_up if transfer.begun}:
            link.abort()
        self._all_over(given_up, GIVE_UP_S)

    def _all_over(self, transfers: set[Transfer], seconds: float) -> bool:
        """Wait until transfers use no memory any more; tell whether that is so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._ends.lock:
                if not any(transfer.begun for transfer in transfers & self._under_way.keys()):
                    return True
            time.sleep(1e-3)
        return False

    def _carry(self, context: bytes, transfer: Transfer, done: Done) -> None:
        with self._ends.lock:  # those of one link are carried in this order
            self._under_way[transfer] = context, done
            which = "NCCL sends" if transfer.link.sends else "NCCL receives"
            self._waits.add(which, (transfer,), partial(self._over, transfer))

    def _over(self, transfer: Transfer, error: Exception | None) -> None:
        with self._ends.lock:
            _, done = self._under_way.pop(transfer, (b"", None))
        if done is not None:  # it was not told before
            done(error)

    def _link(self, peer: int, sends: bool) -> Link:
        with self._ends.lock:
            if (peer, sends) not in self._links:
                self._links[peer, sends] = self._outward(peer) if sends else self._inward(peer)
            return self._links[peer, sends]

    def _outward(self, peer: int) -> Outward:
        whom = f"rank {self._ends.job_rank()}: NCCL cannot send GPU memory to rank {self._ends.job_rank(peer)}"
        return Outward(self._nccl, partial(self._ends.why_gone, peer), whom, partial(self._ends.refuse, peer))

    def _inward(self, peer: int) -> Inward:
        whom = f"rank {self._ends.job_rank()}: NCCL cannot receive GPU memory from rank {self._ends.job_rank(peer)}"
        return Inward(self._nccl, partial(self._ends.why_gone, peer), whom, partial(self._ends.say_clear, peer))
