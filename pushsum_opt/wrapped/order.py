"""Whether ranks hold the same parameters in another order, which equal shapes hide.

Parameters are exchanged by their position. Names of a model show another order, numbers do not: a list that was made
from a set has another order in each process. Where all ranks have used the same seed, their first values show it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from ..channel import Channel
from .finding import corner

__all__ = ["order_by_values"]

BYTES = 8  # of the digest of a parameter
SAME = bytes(BYTES)  # in its place where all elements are equal: zeros and ones are in many places


def order_by_values(channel: Channel, parameters: Mapping[str, Tensor]) -> str | None:
    """Collective. Return what to warn of where a rank holds rank 0's starting values in other places.

    Only some elements of each parameter are compared, and not where these are all equal. Ranks with different seeds
    have no values in common: then nothing is said.
    """
    mine = b"".join(_digest(parameter) for parameter in parameters.values())
    rows = [row.tobytes() for row in channel.gather(mine, "comparing the order of parameters")]
    split = [[row[at : at + BYTES] for at in range(0, len(row), BYTES)] for row in rows]
    first, names = split[0], list(parameters)
    for rank, found in enumerate(split):
        if found == first or Counter(found) != Counter(first):
            continue
        place = next(
            k for k, (one, other) in enumerate(zip(first, found, strict=True)) if one != other and other != SAME
        )
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
        return SAME
    return hashlib.blake2b(values.numpy().tobytes(), digest_size=BYTES).digest()
