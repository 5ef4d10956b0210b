"""Whether ranks hold the same parameters in another order, which equal shapes hide.

Parameters are exchanged by their place. Names tell the places apart, if there are any and they are not numbers: a list
that was made from a set has another order in every process. Ranks that were seeded alike show it by their first values.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from ..channel import Channel
from .finding import corner

__all__ = ["another_order"]

BYTES = 8  # of the digest of a parameter


def another_order(channel: Channel, parameters: Mapping[str, Tensor]) -> str | None:
    """Collective. Return what to warn of where a rank holds rank 0's starting values in other places.

    Only a corner of each parameter is looked at, and none that are constant there. Ranks with seeds of their own hold
    nothing of each other, and nothing is said.
    """
    mine = b"".join(_digest(parameter) for parameter in parameters.values())
    rows = [row.tobytes() for row in channel.gather(mine, "comparing the order of parameters")]
    split = [[row[at : at + BYTES] for at in range(0, len(row), BYTES)] for row in rows]
    first, names = split[0], list(parameters)
    for rank, found in enumerate(split):
        if found == first or Counter(found) != Counter(first):
            continue
        place = next(k for k, (one, other) in enumerate(zip(first, found, strict=True)) if one != other)
        return (
            f"rank {channel.job_rank(rank)} holds rank {channel.job_rank(0)}'s parameters in another order: its "
            f"{names[place]} is {names[first.index(found[place])]} there. They are exchanged by their place, so "
            "different parameters would be averaged. Make lists of them in the same order on every rank "
            "(model.parameters(), not a set of them), and pass model= to PushSumOptimizer: it compares names"
        )
    return None


def _digest(parameter: Tensor) -> bytes:
    values = corner(parameter).cpu()
    if not values.numel() or bool((values == values[0]).all()):
        return bytes(BYTES)  # zeros and ones are in many places
    return hashlib.blake2b(values.numpy().tobytes(), digest_size=BYTES).digest()
