"""What the ranks of a push-sum find out about their tensors together: how far they are apart, and their average."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .. import transport
from ..errors import ConfigurationError
from ..interrupts import held_back
from ..push_sum import PushSum, rounds
from ..push_sum.averaging import exact_average

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["averaged", "consensus_distance"]


class Wrapper(Protocol):
    """A PushSumOptimizer."""

    @property
    def push_sum(self) -> PushSum: ...


def consensus_distance(optimizer: PushSum | Wrapper) -> float:
    """Collective. Return the root mean square over ranks of the norm of z_i - mean z.

    Args:
        optimizer: a :class:`~pushsum_opt.PushSumOptimizer` or a :class:`~pushsum_opt.PushSum`.

    0 when all ranks hold the same parameters.
    """
    push_sum = getattr(optimizer, "push_sum", optimizer)
    if not isinstance(push_sum, PushSum):
        raise ConfigurationError(f"expected a PushSumOptimizer or a PushSum, got {type(optimizer).__name__}")
    return push_sum.member.survival.together(lambda: _consensus_distance(push_sum))


def _consensus_distance(push_sum: PushSum) -> float:
    rounds.meet(push_sum.member, "consensus_distance()")
    squares, place = 0.0, push_sum.member.place
    with push_sum.member.calls.collective("consensus_distance()"):
        moments = push_sum.member.moments()
        for chunk in push_sum.memory.exchanged:
            own = push_sum.memory.values(chunk)
            for span in push_sum.memory.spans(chunk, moments):
                own[span] = 0.0
            if chunk.by_element:
                own[~np.isfinite(own)] = 0.0
            mean = own.copy()
            place.channel.sum(mean, "consensus_distance", round=push_sum.round)
            own -= mean / push_sum.participants
            squares += float(own @ own)
        total = np.array([squares])
        place.channel.sum(total, "consensus_distance", round=push_sum.round)
        place.host.sum(total, push_sum.round, "consensus_distance")
    return float(np.sqrt(total[0] / push_sum.participants))


@contextmanager
def averaged(push_sum: PushSum, buffers: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Collective. Inside, tensors and buffers hold the exact weighted average over ranks; afterwards, what they held.

    The average is sum_i x_i / sum_i w_i, mass in flight included. Nothing in flight is merged, so the trajectory is the
    same with and without; except that asynchronous ranks, whose trajectory is never the same twice, merge what has come
    before they keep what the tensors hold.

    Args:
        buffers: by name. Those of floating and complex dtypes are averaged with the data weights; sparse, quantized and
            other special ones stay what they are.

    Raises:
        MismatchError: on every rank, where shapes or dtypes of buffers differ between ranks.
    """
    with contextlib.ExitStack() as inside:
        # Entering the block is what all ranks do together, and what survivors of a loss do again. Its end is local.
        block = push_sum.member.survival.together(partial(_entered, push_sum, buffers), undo=contextlib.ExitStack.close)
        inside.push(block)
        yield


def _entered(push_sum: PushSum, buffers: Mapping[str, Tensor] | None) -> contextlib.ExitStack:
    """Enter the block, and return what leaves it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_average(push_sum, buffers))
        return stack.pop_all()


@contextmanager
def _average(push_sum: PushSum, buffers: Mapping[str, Tensor] | None) -> Iterator[None]:
    rounds.await_in_flight(push_sum.member, "averaged()")
    memory = push_sum.memory
    with push_sum.member.lifetime.failing_together(), transport.calling("averaged()"):
        memory.refresh()
        tensors = [tensor for tensor in memory.tensors.values() if hasattr(tensor, "detach")]
        positions, lent = [], None
        if tensors or buffers is not None:  # a push-sum over numpy arrays works without torch
            from ..lending import LentBuffers, Position

            positions = [Position(tensor) for tensor in tensors]
            lent = LentBuffers(push_sum, buffers)
        kept = [memory.raw(chunk) for chunk in memory.chunks]
    try:
        with push_sum.member.lifetime.lent("averaged()"):
            with push_sum.member.calls.collective("averaged()"):
                _assign_average(push_sum)
                if lent is not None:
                    lent.average()
            yield
    finally:
        with held_back():  # a second Ctrl-C waits until the tensors are what they were
            for position in positions:
                position.restore()
            memory.refresh()
            for chunk, flat in zip(memory.chunks, kept, strict=True):
                memory.put_raw(chunk, flat)
            if lent is not None:
                lent.put_back()


def _assign_average(push_sum: PushSum) -> None:
    channel, in_flight = push_sum.member.place.channel, push_sum.member.mode.in_flight()
    memory, weight = push_sum.memory, push_sum.push_weight
    for chunk, mean in exact_average(channel, memory, weight, in_flight, "averaged", push_sum.round):
        memory.assign(chunk, mean)
    rounds.reassemble(push_sum.member)
