"""What the exchange needs of an accelerator: memory, streams, events, and four fused passes over many tensors.

The order of things on an accelerator is the caller's business: work on one stream is done in order, work on two streams
only where one waits for an event of the other. :mod:`~pushsum_opt.memory.staging` and
:mod:`~pushsum_opt.memory.on_device` keep that order and know nothing of CUDA; so a device that is emulated on the
host, with streams that are as late as they may be, tests both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .late import Event

__all__ = ["Device", "Stream", "Table"]

Stream = Any
Table = Any


class Device(ABC):
    """One accelerator, as one rank uses it."""

    name: str
    """As in ``TensorSpec.device``, such as "cuda:0"."""

    checking: Stream
    """A stream for the check of what has come: it waits for nothing that the caller computes."""

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

    @abstractmethod
    def allocate(self, nbytes: int) -> Tensor:
        """Return new device memory, uint8, not initialised, from no pool: other processes can be given a handle."""

    @abstractmethod
    def allocate_pinned(self, nbytes: int) -> Tensor:
        """Return new host memory, uint8, not initialised, that the device copies to and from without the processor."""

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
    def table(self, views: Sequence[Tensor]) -> Table:
        """Prepare a list of flat tensors of one dtype for the passes below, to be used on the caller's stream."""

    @abstractmethod
    def pack(self, table: Table, target: Tensor, dtype: str, wire: str, keep: float, stream: Stream) -> None:
        """Gather into bytes: q = cast(z), and z <- z + keep (z - q), in one pass."""

    @abstractmethod
    def merge(self, table: Table, source: Tensor, dtype: str, wire: str, fraction: float, stream: Stream) -> None:
        """Move towards what has come: z <- z + fraction (z_j - z), in one pass."""

    @abstractmethod
    def merge_half(
        self, table: Table, source: Tensor, residual: Tensor, dtype: str, weight: float, mass: float, stream: Stream
    ) -> None:
        """Merge half-precision values and their float32 residuals in one pass.

        u = (w z + r + m z_j) / (w + m), z = cast(u), r = (w + m)(u - z).
        """

    # ------------------------------------------------------------------ questions: each call waits for its answer

    @abstractmethod
    def finite(self, source: Tensor, wire: str, stream: Stream) -> bool:
        """Tell whether bytes that have come hold no inf and no nan."""

    @abstractmethod
    def pieces_finite(self, table: Table, dtype: str, stream: Stream) -> bool:
        """Tell whether the tensors hold no inf and no nan."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all work on the device, on whatever stream."""
