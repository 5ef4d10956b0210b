"""What the exchange needs of an accelerator: memory, streams, events, and a few fused passes over many elements.

The order of things on an accelerator is the caller's business: work on one stream is done in order, work on two streams
only where one waits for an event of the other. :mod:`~pushsum_opt.memory.staging` and
:mod:`~pushsum_opt.memory.on_device` keep that order and know nothing of CUDA; so a device that is emulated on the
host, whose streams delay all work as long as they may, tests both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .room import HostRoom, Room, host_room, no_pinned_room, no_room

if TYPE_CHECKING:
    from torch import Tensor

    from ..buffers import Event
    from .verdict import Flag

__all__ = ["Device", "Stream", "Table"]

Stream = Any
Table = Any


class Device(ABC):
    """One accelerator, as one rank uses it."""

    name: str
    """As in ``TensorSpec.device``, such as "cuda:0"."""

    who: str = "this rank"
    """Whose it is, for errors."""

    outward: Stream
    """A stream for copies to the host."""

    inward: Stream
    """A stream for copies from the host."""

    @abstractmethod
    def use(self) -> None:
        """Make this the device of the calling thread, one of the library's own, before its first call of MPI."""

    @abstractmethod
    def in_use(self) -> AbstractContextManager[None]:
        """Make this the device of the calling thread inside the block; afterwards it has the one that it had."""

    @abstractmethod
    def let_captures_be(self) -> None:
        """Let the calling thread, which is not the caller's, ask events while others capture their work as a graph."""

    # ------------------------------------------------------------------ memory

    def allocate(self, nbytes: int, what: str) -> Tensor:
        """Return new device memory, uint8, not initialised, from no pool: other processes can be given a handle.

        Args:
            what: what it is for, for the error.

        Raises:
            OutOfMemoryError: there is none, not even after torch's pool has given back what is not in use.
        """
        found = self.allocate_if_free(nbytes)
        if found is None:
            self._empty_pool()
            found = self.allocate_if_free(nbytes)
        if found is None:
            raise no_room(self.who, self.name, nbytes, what, self._room())
        return found

    def allocate_if_free(self, nbytes: int) -> Tensor | None:
        """Return device memory as :meth:`allocate` does; None where there is none at once."""
        try:
            return self._malloc(nbytes)
        except MemoryError:
            return None

    def allocate_pinned(self, nbytes: int, what: str) -> Tensor:
        """Return new host memory, uint8, not initialised, that the device copies to and from without the processor.

        Raises:
            OutOfMemoryError: there is none, not even after torch has given back what is not in use.
        """
        found = self.allocate_pinned_if_free(nbytes)
        if found is None:
            self._empty_pinned_pool()
            found = self.allocate_pinned_if_free(nbytes)
        if found is None:
            raise no_pinned_room(self.who, nbytes, what, self._host_room())
        return found

    def allocate_pinned_if_free(self, nbytes: int) -> Tensor | None:
        """Return pinned memory as :meth:`allocate_pinned` does; None where there is none at once."""
        try:
            return self._malloc_pinned(nbytes)
        except MemoryError:
            return None

    @abstractmethod
    def _malloc(self, nbytes: int) -> Tensor:
        """Return new device memory, or raise MemoryError."""

    @abstractmethod
    def _malloc_pinned(self, nbytes: int) -> Tensor:
        """Return new pinned memory, or raise MemoryError."""

    @abstractmethod
    def _empty_pool(self) -> None:
        """Let torch give back the device memory that it holds and does not use."""

    @abstractmethod
    def _empty_pinned_pool(self) -> None:
        """Let torch give back the pinned memory that it holds and does not use."""

    @abstractmethod
    def _room(self) -> Room:
        """Return how the device's memory is used."""

    def _host_room(self) -> HostRoom:
        """Return how the host's memory is used."""
        return host_room()

    @abstractmethod
    def wire(self, memory: Tensor) -> Any:
        """Return device memory as what a transport takes."""

    # ------------------------------------------------------------------ order

    @abstractmethod
    def current(self) -> Stream:
        """Return the stream on which the caller's own work stands."""

    @abstractmethod
    def record(self, stream: Stream) -> Event:
        """Return an event that has happened once all work now on the stream is done."""

    @abstractmethod
    def wait(self, stream: Stream, event: Event) -> None:
        """Let later work on the stream begin only after the event; returns at once."""

    # ------------------------------------------------------------------ work: each call returns at once

    @abstractmethod
    def copy(self, destination: Tensor, source: Tensor, stream: Stream) -> None:
        """Copy bytes within the device, to it or from it; host memory is pinned."""

    @abstractmethod
    def by_torch(self, work: Callable[[], None], stream: Stream) -> None:
        """Let torch do some work on a stream: what is too rare for a pass of its own."""

    @abstractmethod
    def prepare(self, dtypes: Iterable[tuple[str, str]]) -> None:
        """Make the passes for these pairs of a dtype and a wire dtype ready; the first time they are compiled."""

    @abstractmethod
    def table(self, views: Sequence[Tensor]) -> Table:
        """Prepare a list of flat tensors of one dtype for the passes below, to be used on the caller's stream."""

    @abstractmethod
    def pack(self, table: Table, target: Tensor, dtype: str, wire: str, keep: float, stream: Stream) -> None:
        """Gather into bytes: q = cast(z), and z <- z + keep (z - q), in one pass."""

    @abstractmethod
    def check(self, source: Tensor, wire: str, flag: Flag, stream: Stream) -> None:
        """Raise a flag where bytes that have come hold inf or nan."""

    @abstractmethod
    def merge(
        self,
        table: Table,
        source: Tensor,
        dtype: str,
        wire: str,
        fraction: float,
        flag: Flag,
        heal: bool,
        stream: Stream,
    ) -> None:
        """Move towards what has come: z <- z + fraction (z_j - z), in one pass; nothing where the flag is raised.

        Args:
            heal: first replace elements of z that are not finite by z_j, and say so by the flag.
        """

    @abstractmethod
    def merge_half(
        self,
        table: Table,
        source: Tensor,
        residual: Tensor,
        dtype: str,
        weight: float,
        mass: float,
        flag: Flag,
        heal: bool,
        stream: Stream,
    ) -> None:
        """Merge half-precision values and their float32 residuals in one pass; nothing where the flag is raised.

        u = (w z + r + m z_j) / (w + m), z = cast(u), r = (w + m)(u - z).

        Args:
            heal: as in :meth:`merge`; residuals that are not finite become 0.
        """

    # ------------------------------------------------------------------ the same in eight bits: see coded.py

    @abstractmethod
    def coded_table(self, views: Sequence[Tensor]) -> Table:
        """Prepare a list of flat tensors of one dtype for the passes below, to be used on the caller's stream."""

    @abstractmethod
    def pack_coded(
        self,
        table: Table,
        target: Tensor,
        bounds: Tensor,
        residual: Tensor | None,
        dtype: str,
        form: tuple[bool, int],
        left: float,
        given: float,
        stream: Stream,
    ) -> None:
        """Write a chunk to bytes, whole or in eight bits; z, or its residual, keeps what rounding takes away.

        Args:
            target: the bytes that travel, uint8.
            bounds: of each block, the largest difference that was seen lately, in the work dtype; only read.
            form: whether the chunk is whole; and for how many rounds chunks are to be whole from now on.
            left, given: w after giving, and M.
        """

    @abstractmethod
    def check_coded(self, source: Tensor, dtype: str, count: int, flag: Flag, stream: Stream) -> None:
        """Raise a flag where bytes that have come hold inf or nan, and tell what their sender asks for.

        Args:
            count: of the elements.
        """

    @abstractmethod
    def merge_coded(
        self,
        table: Table,
        source: Tensor,
        bounds: Tensor,
        residual: Tensor | None,
        dtype: str,
        weight: float,
        mass: float,
        flag: Flag,
        heal: bool,
        stream: Stream,
    ) -> None:
        """Merge as :meth:`merge` or :meth:`merge_half` does, and learn; nothing where the flag is raised.

        Where a block comes out wrong, or elements of ours are not finite, the flag says so.

        Args:
            bounds: as in :meth:`pack_coded`; they become what is known after this chunk.
            heal: as in :meth:`merge`, of a chunk that is whole.
        """

    # ------------------------------------------------------------------ the end

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all work on the device, on whatever stream."""
