"""Sums of some elements of z on an accelerator: it finds them in order with its merges, and the host reads them later.

Plain torch: sums are rare, so a kernel of their own would save nothing. Not as a product of matrices: cuBLAS refuses
one under ``torch.use_deterministic_algorithms(True)``, and takes memory of its own. A sum has a fixed order.

With samples of n tensors of one dtype, a call costs n / 64 launches, rounded up, that gather them (what torch.cat takes
at a time, of views with gaps), five more to widen and sum, and a copy of 64 bytes. A tensor that is not contiguous is
copied first, by one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from ..buffers import Event
from .device import Device
from .primitives import Values
from .sums import Sums

__all__ = ["LateSums", "Summing"]


class Summing:
    """What a device needs for sums with the same signs, one result at a time.

    Args:
        signs: float64, shape (sums, elements).
        there: float64 on the device, not initialised: room for the signs.
        found: float64 on the device, shape (sums,): room for a result.
        pinned: uint8 on the host: room for a result, and for the signs on their way to the device.
    """

    def __init__(self, device: Device, signs: Values, there: Tensor, found: Tensor, pinned: Tensor) -> None:
        self.device = device
        self.told = pinned[: found.nbytes].view(torch.float64)
        self.latest: LateSums | None = None
        """Whose result ``told`` has, or will have."""
        self._found = found
        self._signs = there.view(signs.shape)
        # Through pinned memory: of any other torch would wait until the device has it.
        sent, stream = pinned[found.nbytes :], device.current()
        sent.view(torch.float64).numpy()[:] = signs.reshape(-1)
        device.copy(there.view(torch.uint8), sent, stream)
        self._last_use: Event = device.record(stream)

    def begin(self, samples: Sequence[tuple[Tensor, slice]], more: Values) -> LateSums:
        """Sum up what the tensors hold once all work is done that now stands on the caller's stream; return at once.

        Args:
            samples: tensors on the device, and which elements of each, in the order of the signs.
            more: what is added to the sums.
        """
        device, stream = self.device, self.device.current()
        device.wait(stream, self._last_use)
        device.by_torch(partial(_sum_up, samples, self._signs, self._found), stream)
        # Not on the caller's stream, which would wait while whole chunks before it are copied to the host.
        device.wait(device.outward, device.record(stream))
        device.copy(self.told.view(torch.uint8), self._found.view(torch.uint8), device.outward)
        self._last_use = device.record(device.outward)
        self.latest = LateSums(self, self._last_use, more)
        return self.latest


class LateSums(Sums):
    """Sums that an accelerator finds. Where later ones were begun before anybody asked for these, they are given up."""

    def __init__(self, summing: Summing, done: Event, more: Values) -> None:
        super().__init__(None)
        self._summing: Summing | None = summing
        self._done = done
        self._more = more

    def result(self) -> Values | None:
        if self._summing is not None and self._summing.latest is self:
            self._summing.device.current()  # refuses while a CUDA graph is captured, which waiting would spoil
            self._done.synchronize()
            self._values = self._summing.told.numpy() + self._more
        self._summing = None
        return super().result()


def _sum_up(samples: Sequence[tuple[Tensor, slice]], signs: Tensor, found: Tensor) -> None:
    parts = [tensor.reshape(-1)[elements] for tensor, elements in samples]
    runs = [torch.cat(list(run)) for _, run in groupby(parts, key=lambda part: part.dtype)]
    sample = torch.cat([run.to(torch.float64) for run in runs])
    torch.sum(signs * sample, 1, out=found)
