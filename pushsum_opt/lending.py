"""Tensors that hold other values for a while: averages are written to them, and afterwards their own values again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import tensor_kinds
from .channel import copying
from .channel.agreement import agree
from .push_sum import PushSum
from .transport import calling

__all__ = ["LentBuffers", "Position"]

REPLACED = (
    "A buffer may have been registered, or replaced by one of another shape, on some ranks only: do it on every rank"
)


class Position:
    """Where a tensor lies now. :meth:`restore` undoes ``tensor.data = ...``, which ``module.to(dtype)`` does, too."""

    __slots__ = ("_memory", "_tensor")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._memory = tensor.detach() if tensor_kinds.is_one_block(tensor) else None

    def restore(self) -> None:
        before, now = self._memory, self._tensor
        if before is None:
            return  # sparse, lazy, or wrapping other tensors: it has no single block of memory
        if now.dtype is not before.dtype or now.device != before.device or not _same_memory(now, before):
            now.data = before


def _same_memory(tensor: Tensor, other: Tensor) -> bool:
    return bool(tensor_kinds.local_part(tensor).is_set_to(tensor_kinds.local_part(other)))


class LentBuffers:
    """The buffers of a model that hold their average over ranks for a while. Construction is collective.

    Only what has an average is touched: floating and complex numbers in plain memory.

    Args:
        buffers: by name; the same names, shapes and dtypes on every rank. None: none on any rank.

    Raises:
        MismatchError: on every rank, where they differ; nothing has changed then.
    """

    def __init__(self, push_sum: PushSum, buffers: Mapping[str, Tensor] | None) -> None:
        self._push_sum = push_sum
        self._lent: list[tuple[Tensor, Tensor]] = []
        if buffers is None:
            return
        floating = {name: buffer for name, buffer in buffers.items() if tensor_kinds.is_averageable(buffer)}
        form = {name: tensor_kinds.described(buffer) for name, buffer in floating.items()}
        place = push_sum.member.place
        with push_sum.member.lifetime.failing_together(), calling("averaged()"):
            for channel in (*place.host.channels, place.channel):
                agree(channel, form, fix=REPLACED)
            parts = [part for buffer in floating.values() for part in tensor_kinds.plain_parts(buffer) or ()]
            # Expanded elements are averaged once, where all ranks expand alike. With lanes all ranks of a host would
            # have to agree on it too, so there every element is averaged.
            alike = place.host.lanes == 1 and copying.alike_everywhere(place.channel, parts)
        for buffer in floating.values():
            for part in tensor_kinds.plain_parts(buffer) or ():
                self._lent.append((buffer, copying.once(part) if alike else part))
        self._kept = [held.clone() for _, held in self._lent]
        self._positions = [Position(buffer) for buffer in floating.values()]

    def average(self) -> None:
        """Collective. Set every buffer to its average, with the data weights."""
        for buffer, held in self._lent:
            if held.numel():
                self._average(buffer, held)

    def _average(self, buffer: Tensor, held: Tensor) -> None:
        push_sum, place = self._push_sum, self._push_sum.member.place
        values = held.resolve_conj().resolve_neg()
        real = torch.view_as_real(values) if values.is_complex() else values
        total = real.double().cpu().contiguous().clone().numpy().reshape(-1) * push_sum.initial_weight
        total *= place.host.data_fraction
        place.host.sum(total, push_sum.round, "averaged")
        place.channel.sum(total, "averaged", round=push_sum.round)
        mean = torch.from_numpy(total / push_sum.participants).reshape(real.shape)
        copying.write(buffer, held, (torch.view_as_complex(mean) if values.is_complex() else mean).to(values.dtype))

    def put_back(self) -> None:
        """Give every buffer its memory and its values, bit for bit."""
        if not self._lent:
            return
        for position in self._positions:
            position.restore()
        for (buffer, held), old in zip(self._lent, self._kept, strict=True):
            copying.write(buffer, held, old)
