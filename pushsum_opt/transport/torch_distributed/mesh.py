"""The connections of gloo between processes, which all transports over torch.distributed between them share.

A *frame* goes ahead of every message: for whom it is, its tag and its length. A short message travels inside its frame.
A long one follows once its receiver has a buffer for it. So a message that does not fit is refused before it is
received, where gloo would end the process, and an expectation can be taken back, which gloo does not know. Of a message
in GPU memory only frames go over gloo; see :mod:`~pushsum_opt.transport.torch_distributed.device_messages`.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np

from ...buffers import DeviceBytes
from ...errors import LaunchError, PeerFailed
from .contexts import Arrival, Contexts, Listener
from .device_messages import DeviceMessages
from .waits import FOREVER, Done, Waits

__all__ = ["INSIDE_BYTES", "Mesh", "gone"]

CONNECT = timedelta(seconds=120)
"""Seconds that gloo has to connect processes that are all there."""
FRAME_TAG = 0
PROBE_TAG = 1
FIRST_NUMBER, LAST_NUMBER = 2, (1 << 31) - 1
"""Tags of gloo for long messages, one after the other; a number comes again after two thousand million messages."""
HEAD = struct.Struct("<Bi16sqqi")  # kind, sender, context, tag, length, number
FRAME_BYTES = 2048
INSIDE_BYTES = FRAME_BYTES - HEAD.size
"""A message of up to so many bytes travels inside its frame."""
MESSAGE, BY_NCCL, CLEAR, REFUSED, STOPPED, WORD, END = range(7)
"""Kinds of frames: of a message; of one in GPU memory; there is a buffer for that one; that one does not come; the
sender stops with an error; of the roll call; nothing comes any more."""
FRAMES_AT_ONCE = 32
"""Frames to one process that are kept until a thread looks whether they have been sent."""
NO_CONTEXT = bytes(16)


class Mesh:
    """This process in the mesh. Constructing one is collective over its ranks, which are all there already.

    Args:
        store: for these connections alone.
        ranks: of the job; they are numbered in this order here.
        rank: of this process in the job.

    Raises:
        LaunchError: gloo cannot connect the processes.
    """

    def __init__(self, store: Any, ranks: tuple[int, ...], rank: int) -> None:
        import torch
        import torch.distributed as dist

        self.store = store
        self.ranks = ranks
        self.me, self.size = me, size = ranks.index(rank), len(ranks)
        self._torch = torch
        self._contexts = Contexts()
        self.lock = self._contexts.lock
        """Held while messages and expectations find each other."""
        self._numbers = [FIRST_NUMBER] * size
        self._unseen: list[list[Any]] = [[] for _ in range(size)]
        self._words: list[bytes] = []
        self._waits = Waits("pushsum_opt waits for gloo")
        self._on_devices = DeviceMessages(self, self._waits)
        self.ending = False
        """This process is at its end, and no news of others count."""
        self._group: Any = None
        self._thread: threading.Thread | None = None
        if size > 1:
            try:
                self._group = dist.ProcessGroupGloo(store, me, size, CONNECT)
            except RuntimeError as error:
                raise LaunchError(_cannot_connect(rank, error)) from error
            self._thread = threading.Thread(target=self._listen, name="pushsum_opt hears gloo", daemon=True)
            self._thread.start()

    # ------------------------------------------------------------------ contexts

    def open(self, context: bytes, listener: Listener) -> None:
        """From now on a listener takes the messages of a context, those first that have come before."""
        self._contexts.open(context, listener)

    def close(self, context: bytes) -> None:
        """What still comes for a context is thrown away."""
        self._contexts.close(context)
        self.give_up(context)

    def give_up(self, context: bytes) -> None:
        """End what NCCL still does for a context, and wait until no GPU memory is used for it."""
        self._on_devices.give_up(context)

    # ------------------------------------------------------------------ messages

    def send(self, to: int, context: bytes, tag: int, data: Any, whole: bool, done: Done) -> None:
        """Begin to send a flat uint8 array, or memory of a GPU.

        Args:
            whole: call ``done`` only once the receiver has a buffer for it, however short it is.
            done: called as soon as the memory may change, or with an error; by any thread, or before this returns.

        Raises:
            PeerFailed: the other process has died.
        """
        length = int(data.nbytes)
        if isinstance(data, DeviceBytes):
            number = self._next_number(to)
            self._on_devices.post(to, number, context, data, done)
            self._send_frame(to, HEAD.pack(BY_NCCL, self.me, context, tag, length, number))
        elif to == self.me:
            self._contexts.deliver(Arrival(to, context, tag, length, data.tobytes(), 0))
            done(None)
        elif length <= INSIDE_BYTES and not whole:
            self._send_frame(to, HEAD.pack(MESSAGE, self.me, context, tag, length, 0) + data.tobytes())
            done(None)
        else:
            number = self._next_number(to)
            self._send_frame(to, HEAD.pack(MESSAGE, self.me, context, tag, length, number))
            work = self._begin(to, self._group.send, [self._tensor(data if length else _nothing())], to, number)

            def sent(error: Exception | None) -> None:
                if error is None:
                    done(None)  # otherwise whoever waits for the other process finds out that it has died

            self._waits.add(("to", to, context, tag), (work,), sent)

    def _next_number(self, to: int) -> int:
        with self.lock:
            number = self._numbers[to]
            self._numbers[to] = FIRST_NUMBER if number == LAST_NUMBER else number + 1
        return number

    def receive(self, arrival: Arrival, buffer: Any, done: Done) -> None:
        """Begin to receive a message into the beginning of a flat uint8 array, or memory of a GPU, that is long enough.

        Args:
            done: called once it is there, or with an error; by any thread, or before this returns.
        """
        if arrival.data is not None:
            buffer[: arrival.length] = np.frombuffer(arrival.data, np.uint8)
            done(None)
            return
        if arrival.by_nccl:
            part = replace(buffer, nbytes=arrival.length)
            self._on_devices.receive(arrival.source, arrival.number, arrival.context, part, done)
            return
        target = self._tensor(buffer[: arrival.length] if arrival.length else _nothing())
        try:
            work = self._begin(arrival.source, self._group.recv, [target], arrival.source, arrival.number)
        except PeerFailed as error:
            done(error)
            return
        self._waits.add(("from", arrival.source), (work,), done)

    def is_gone(self, peer: int) -> bool:
        """Tell whether the connection to a process has ended. Local.

        gloo says so where something is to be received; what is posted here never comes.
        """
        if peer == self.me:
            return False
        try:
            self._group.recv([self._tensor(_nothing())], peer, PROBE_TAG)
        except RuntimeError:
            return True
        return False

    def say(self, to: int, word: bytes) -> None:
        """Send a word of the roll call, at best effort."""
        if len(word) <= INSIDE_BYTES:
            self._send_quietly(to, HEAD.pack(WORD, self.me, NO_CONTEXT, 0, len(word), 0) + word)

    def words(self) -> list[bytes]:
        """Return the words that have come since the last call."""
        with self.lock:
            words, self._words = self._words, []
        return words

    # ------------------------------------------------------------------ GPU memory

    def say_clear(self, to: int, number: int, id: bytes) -> None:
        """See :class:`~pushsum_opt.transport.torch_distributed.device_messages.Ends`."""
        self._send_frame(to, HEAD.pack(CLEAR, self.me, NO_CONTEXT, 0, len(id), number) + id)

    def refuse(self, to: int, number: int) -> None:
        """See :class:`~pushsum_opt.transport.torch_distributed.device_messages.Ends`."""
        self._send_quietly(to, HEAD.pack(REFUSED, self.me, NO_CONTEXT, 0, 0, number))

    def why_gone(self, peer: int) -> str | None:
        """See :class:`~pushsum_opt.transport.torch_distributed.device_messages.Ends`."""
        return gone(self.job_rank(), self.job_rank(peer)) if self.is_gone(peer) else None

    def job_rank(self, number: int | None = None) -> int:
        """Return the rank of a process, or of this one, in the job."""
        return self.ranks[self.me if number is None else number]

    # ------------------------------------------------------------------ the end

    def say_stopped(self, reason: str) -> None:
        """Tell all processes, at best effort, that this one stops with an error."""
        text = reason.encode("utf-8", "replace")[:INSIDE_BYTES]
        for to in range(self.size):
            self._send_quietly(to, HEAD.pack(STOPPED, self.me, NO_CONTEXT, 0, len(text), 0) + text)

    def end(self, seconds: float) -> bool:
        """All processes are at their end. Stop to listen; tell whether no thread waits for gloo any more.

        A thread that waits can be woken only by a message, so each process sends one to the next.
        """
        if self._thread is None:
            return True
        self._on_devices.give_up()
        self._send_quietly((self.me + 1) % self.size, HEAD.pack(END, self.me, NO_CONTEXT, 0, 0, 0))
        deadline = time.monotonic() + seconds
        self._thread.join(seconds)
        while not (over := self._waits.all_over()) and time.monotonic() < deadline:
            time.sleep(1e-3)
        return over and not self._thread.is_alive()

    # ------------------------------------------------------------------ frames

    def _send_quietly(self, to: int, frame: bytes) -> None:
        if to == self.me:
            return
        try:
            self._send_frame(to, frame)
        except PeerFailed:
            return

    def _send_frame(self, to: int, frame: bytes) -> None:
        work = self._begin(
            to, self._group.send, [self._tensor(np.frombuffer(bytearray(frame), np.uint8))], to, FRAME_TAG
        )
        with self.lock:
            unseen = self._unseen[to]
            unseen.append(work)
            if len(unseen) < FRAMES_AT_ONCE:
                return
            self._unseen[to] = []
        self._waits.add(("frames to", to), unseen)

    def _listen(self) -> None:
        while True:
            frame = np.empty(FRAME_BYTES, np.uint8)
            try:
                self._group.recv_anysource([self._tensor(frame)], FRAME_TAG).wait(FOREVER)
            except RuntimeError as error:
                self._say_who_is_gone(error)
                return
            kind, source, context, tag, length, number = HEAD.unpack_from(frame.data)
            inside = number == 0 or kind == CLEAR
            data = frame[HEAD.size : HEAD.size + length].tobytes() if inside else None
            if kind in (MESSAGE, BY_NCCL):
                self._contexts.deliver(Arrival(source, context, tag, length, data, number, kind == BY_NCCL))
            elif kind == CLEAR:
                self._on_devices.cleared(source, number, data or b"")
            elif kind == REFUSED:
                self._on_devices.refused(source, number)
            elif kind == STOPPED:
                self._contexts.note_stopped(source, (data or b"").decode("utf-8", "replace"))
            elif kind == WORD:
                with self.lock:
                    self._words.append(data or b"")
            else:
                return

    def _say_who_is_gone(self, error: Exception) -> None:
        """Frames cannot be received from anybody any more, because a process has died: then gloo refuses it."""
        if self.ending:
            return
        for peer in range(self.size):
            if peer not in self._contexts.stopped and self.is_gone(peer):
                self._contexts.note_stopped(peer, DIED.format(why=_first_line(error)))

    def _begin(self, peer: int, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RuntimeError as error:
            raise PeerFailed(gone(self.ranks[self.me], self.ranks[peer], error)) from error

    def _tensor(self, data: Any) -> Any:
        # torch warns of an array that may not be written to.
        return self._torch.from_numpy(data if data.flags.writeable else data.copy())


def gone(me: int, peer: int, error: Exception | None = None) -> str:
    """Return what is said of a process whose connection has ended."""
    why = "" if error is None else _first_line(error)
    return (
        f"rank {me}: rank {peer} has died: " + DIED.format(why=why) + ": see what it printed, and the launcher's report"
    )


DIED = "its connection has ended{why}. It was killed, ran out of memory or crashed, or its host or network is gone"


def _cannot_connect(me: int, error: Exception) -> str:
    return (
        f"rank {me}: gloo cannot connect the processes of this job{_first_line(error)}. One has died just now; or "
        "hosts do not reach each other at the address that gloo has chosen: name the network card "
        "(GLOO_SOCKET_IFNAME=eth0) on every host, and let them talk on all ports"
    )


def _first_line(error: Exception) -> str:
    return f" (gloo: {str(error).splitlines()[0][:160]})"


def _nothing() -> Any:
    return np.zeros(1, np.uint8)
