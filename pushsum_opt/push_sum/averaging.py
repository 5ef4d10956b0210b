"""The exact average of all ranks, by all-reduce."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..channel import Channel
from ..gossip.protocol import InFlight
from ..memory import Chunk, Memory

__all__ = ["exact_average"]


def exact_average(
    channel: Channel,
    memory: Memory,
    weight: float,
    in_flight: Iterable[InFlight],
    what: str,
    round: int,
    *,
    narrow: bool = False,
    beside: Any = None,
) -> Iterator[tuple[Chunk, Any]]:
    """Collective. Yield every chunk with its average over ranks, sum (w z + r + sum m z_j) / sum (w + sum m).

    r is the residual that rounding on the wire has left; m and z_j are of the messages in flight to a rank. Sums are in
    float64, chunk by chunk. Nothing is changed. Elements of buffers whose average is inf or nan are given as they are
    on this rank.

    Args:
        weight: w of this rank.
        in_flight: the messages that have come to this rank and are not merged.
        what: the name of the call, for messages.
        narrow: sum in float32 instead: half the bytes, and exact to its rounding.
        beside: further numbers, a flat float64 array, that is replaced by its sum over ranks.
    """
    waiting = list(in_flight)
    total_weight = weight + sum(mass for mass, _ in waiting)
    scalars = np.array([total_weight, *(() if beside is None else beside)])
    channel.sum(scalars, what, round=round)
    total_weight = scalars[0]
    if beside is not None:
        beside[:] = scalars[1:]
    for chunk in memory.exchanged:
        total = memory.numerator(chunk, weight)
        for mass, slabs in waiting:
            total += mass * memory.received_values(chunk, slabs[chunk.index])
        if narrow:
            total = total.astype(np.float32)
        channel.sum(total, what, round=round)
        mean = total.astype(np.float64, copy=False) / total_weight
        yield chunk, np.where(np.isfinite(mean), mean, memory.values(chunk)) if chunk.by_element else mean
