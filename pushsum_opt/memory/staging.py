"""The two ways between a device and the wire: MPI takes device memory itself, or everything goes through the host.

Both hand out a :class:`Slab` per chunk and keep one rule: work on a slab or a bounce buffer first waits for its last
use, and then becomes its last use. That one chain orders packing, copies, checks, merges and the transport.

On the way through the host a slab is pinned host memory, as long-lived as any other, so that a transport can always
send or receive all of it; a message that waits for a peer holds up no other. What is shared is the room on the device:
bounce buffers, two at least, so that one chunk is copied while the next is packed, or the one before merged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING
from weakref import WeakSet

from ..buffers import Event, PendingBuffer
from .device import Device, Stream

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Direct", "Path", "Slab", "Staged"]

BOUNCE = "a buffer between the GPU and pinned host memory"
AT_LEAST = 2  # bounce buffers each way: one is copied while the other is packed or merged


class Slab:
    """Bytes of one chunk on its way out or in."""

    __slots__ = ("__weakref__", "_nbytes", "last_use", "memory")

    def __init__(self, memory: Tensor) -> None:
        self.memory: Tensor | None = memory
        self.last_use: Event | None = None
        """The last thing that the device does with it."""
        self._nbytes = len(memory)

    def __len__(self) -> int:
        return self._nbytes

    def part(self, nbytes: int) -> Tensor:
        assert self.memory is not None, "the memory was closed"
        return self.memory[:nbytes]


class Path(ABC):
    """How chunks get from the device to the wire and back."""

    name: str
    """For the start line."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._slabs: WeakSet[Slab] = WeakSet()
        self.held = 0
        """Bytes of device memory held beside the slabs."""

    def reserve(self) -> None:  # noqa: B027  (only one of the ways needs more than slabs)
        """Make what every round needs beside the slabs."""

    def new_slab(self, nbytes: int, what: str) -> Slab:
        """Make a slab.

        Args:
            what: what it is for, for the error where there is no memory.
        """
        return self._slab(self._allocate(nbytes, what))

    def new_slab_if_free(self, nbytes: int) -> Slab | None:
        """Make a slab; None where there is no free memory for it."""
        memory = self._allocate_if_free(nbytes)
        return None if memory is None else self._slab(memory)

    def _slab(self, memory: Tensor) -> Slab:
        slab = Slab(memory)
        self._slabs.add(slab)
        return slab

    @abstractmethod
    def _allocate(self, nbytes: int, what: str) -> Tensor: ...

    @abstractmethod
    def _allocate_if_free(self, nbytes: int) -> Tensor | None: ...

    @abstractmethod
    def writing(self, slab: Slab, nbytes: int, stream: Stream) -> AbstractContextManager[Tensor]:
        """Give device memory to fill on ``stream``; at the end of the block it is on its way into the slab."""

    @abstractmethod
    def reading(self, slab: Slab, nbytes: int, stream: Stream) -> AbstractContextManager[Tensor]:
        """Give device memory with the contents of the slab, to be read on ``stream`` inside the block."""

    @abstractmethod
    def wire(self, slab: Slab, nbytes: int) -> PendingBuffer:
        """Return what a transport sends, or receives into. Before a receive, what was received before is given up."""

    def close(self) -> None:
        """Give all memory back, even where a slab is still held. Nothing is under way any more."""
        for slab in self._slabs:
            slab.memory = None
        self.held = 0


class Direct(Path):
    """MPI reads and writes device memory: the slab is the device memory."""

    name = "device pointers"

    def _allocate(self, nbytes: int, what: str) -> Tensor:
        return self._device.allocate(nbytes, what)

    def _allocate_if_free(self, nbytes: int) -> Tensor | None:
        return self._device.allocate_if_free(nbytes)

    @contextmanager
    def writing(self, slab: Slab, nbytes: int, stream: Stream) -> Iterator[Tensor]:
        if slab.last_use is not None:
            self._device.wait(stream, slab.last_use)
        yield slab.part(nbytes)
        slab.last_use = self._device.record(stream)

    def reading(self, slab: Slab, nbytes: int, stream: Stream) -> AbstractContextManager[Tensor]:
        return self.writing(slab, nbytes, stream)

    def wire(self, slab: Slab, nbytes: int) -> PendingBuffer:
        return PendingBuffer(self._device.wire(slab.part(nbytes)), slab.last_use)


class Staged(Path):
    """MPI sees pinned host memory; chunks are copied between it and bounce buffers on the device.

    Copies stand on streams of their own, so they run beside what the caller computes. The host never waits. The device
    waits only where no bounce buffer is free, and then more of them are made, up to one for every chunk, where the
    device has free memory for them.
    """

    name = "through the host"

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.most = AT_LEAST
        """Bounce buffers each way, at most."""
        self.largest = 0
        """Bytes of the largest chunk: what every bounce buffer has room for."""
        self._out: deque[_Bounce] = deque()
        self._in: deque[_Bounce] = deque()

    def _allocate(self, nbytes: int, what: str) -> Tensor:
        return self._device.allocate_pinned(nbytes, what)

    def _allocate_if_free(self, nbytes: int) -> Tensor | None:
        return self._device.allocate_pinned_if_free(nbytes)

    def reserve(self) -> None:
        for ring in (self._out, self._in):
            self._drop_small(ring, self.largest)
            while self.most and len(ring) < AT_LEAST:
                self._add(ring, self._device.allocate(self.largest, BOUNCE))

    @contextmanager
    def writing(self, slab: Slab, nbytes: int, stream: Stream) -> Iterator[Tensor]:
        bounce = self._take(self._out, nbytes)
        self._order(stream, bounce.last_use)
        yield bounce.memory[:nbytes]
        outward = self._device.outward
        self._order(outward, self._device.record(stream), slab.last_use)
        self._device.copy(slab.part(nbytes), bounce.memory[:nbytes], outward)
        bounce.last_use = slab.last_use = self._device.record(outward)
        self._give_up(slab)

    @contextmanager
    def reading(self, slab: Slab, nbytes: int, stream: Stream) -> Iterator[Tensor]:
        bounce = self._land(slab, nbytes)
        self._order(stream, bounce.last_use)
        yield bounce.memory[:nbytes]
        bounce.last_use = self._device.record(stream)

    def wire(self, slab: Slab, nbytes: int) -> PendingBuffer:
        self._give_up(slab)
        return PendingBuffer(slab.part(nbytes).numpy(), slab.last_use)

    def close(self) -> None:
        super().close()
        self._out.clear()
        self._in.clear()

    def _land(self, slab: Slab, nbytes: int) -> _Bounce:
        """Return the bounce buffer that holds what is in the slab; copy it there unless that was done before."""
        for bounce in self._in:
            if bounce.holds is slab and bounce.filled >= nbytes:
                return bounce
        bounce = self._take(self._in, nbytes)
        inward = self._device.inward
        self._order(inward, bounce.last_use, slab.last_use)
        self._device.copy(bounce.memory[:nbytes], slab.part(nbytes), inward)
        bounce.last_use = slab.last_use = self._device.record(inward)
        bounce.holds, bounce.filled = slab, nbytes
        return bounce

    def _take(self, ring: deque[_Bounce], nbytes: int) -> _Bounce:
        """Return the bounce buffer that was used longest ago, or a new one where that is still in use."""
        self._drop_small(ring, nbytes)
        oldest_is_free = bool(ring) and (ring[0].last_use is None or ring[0].last_use.query())
        if not oldest_is_free and len(ring) < max(AT_LEAST, self.most):
            room = max(nbytes, self.largest)
            if len(ring) < AT_LEAST:
                self._add(ring, self._device.allocate(room, BOUNCE))
            elif (more := self._device.allocate_if_free(room)) is not None:  # a copy waits otherwise, no more
                self._add(ring, more)
        ring.rotate(-1)
        ring[-1].holds = None
        return ring[-1]

    def _add(self, ring: deque[_Bounce], memory: Tensor) -> None:
        ring.appendleft(_Bounce(memory))
        self.held += len(memory)

    def _drop_small(self, ring: deque[_Bounce], nbytes: int) -> None:
        while ring and len(ring[0].memory) < nbytes:
            self.held -= len(ring.popleft().memory)  # the plan has larger chunks now

    def _give_up(self, slab: Slab) -> None:
        for bounce in self._in:
            if bounce.holds is slab:
                bounce.holds = None

    def _order(self, stream: Stream, *events: Event | None) -> None:
        for event in events:
            if event is not None:
                self._device.wait(stream, event)


class _Bounce:
    """Room on the device for one chunk on its way through the host."""

    __slots__ = ("filled", "holds", "last_use", "memory")

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.last_use: Event | None = None
        self.holds: Slab | None = None
        """The slab whose contents it has."""
        self.filled = 0
