"""What all ranks settle before the first round: that they will exchange the same things, and their data weights."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

import numpy as np

from ..errors import ConfigurationError, MismatchError
from ..log import log
from .channel import Channel

__all__ = ["agree", "named_ranks", "normalised_data_weight", "shared_run"]

BUILT_ALIKE = "Build the same model, optimizer and graph on every rank (same code, same arguments)"


def agree(
    channel: Channel,
    required: Mapping[str, str],
    versions: Mapping[str, str] | None = None,
    *,
    fix: str = BUILT_ALIKE,
) -> None:
    """Compare a description of this rank with everyone's. Collective.

    Args:
        required: what must be equal on all ranks, by a name that a user understands.
        versions: what had better be equal: a difference is only logged, on rank 0.
        fix: the last sentence of the error.

    Raises:
        MismatchError: the same on every rank, naming each item that differs and who holds what.
    """
    mine = [dict(required), dict(versions or {})]
    digests = channel.gather(hashlib.blake2b(repr(mine).encode(), digest_size=16).digest(), "comparing the set-up")
    if (digests == digests[0]).all():
        return
    everyone = channel.gather_objects(mine, "comparing the set-up")
    names = [channel.job_rank(rank) for rank in range(channel.size)]
    differences = _differences([rank[0] for rank in everyone], names)
    if differences:
        channel.let_everyone_know()
        raise MismatchError(
            f"rank {channel.job_rank()}: the ranks disagree about what they exchange: "
            + "; ".join(differences)
            + f". {fix}"
        )
    if channel.rank == 0:
        for line in _differences([rank[1] for rank in everyone], names):
            log.warning("the ranks run different versions: %s", line)


def _differences(everyone: list[dict[str, str]], ranks: list[int], most: int = 5) -> list[str]:
    names = list(dict.fromkeys(name for items in everyone for name in items))
    lines = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for rank, items in zip(ranks, everyone, strict=True):
            holders.setdefault(items.get(name, "missing"), []).append(rank)
        if len(holders) > 1:
            parts = [f"{value} on {named_ranks(own)}" for value, own in holders.items()]
            lines.append(f"{name} is " + ", ".join(parts[:4]))
    if not lines:
        lines = _another_order(everyone, ranks)
    hidden = len(lines) - most
    return [*lines[:most], f"and {hidden} more"] if hidden > 0 else lines


def _another_order(everyone: list[dict[str, str]], ranks: list[int]) -> list[str]:
    """Where all ranks hold the same items: they are exchanged by their place, so the order must be the same as well."""
    first = list(everyone[0])
    for rank, items in zip(ranks, everyone, strict=True):
        place = next((k for k, (one, other) in enumerate(zip(first, items, strict=True)) if one != other), None)
        if place is not None:
            other = list(items)[place]
            return [f"their order: number {place} is {first[place]} on rank {ranks[0]}, {other} on rank {rank}"]
    return []


def named_ranks(ranks: list[int]) -> str:
    """Name ranks, for messages."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:6]))
    return f"ranks {shown}" + (f", ... ({len(ranks)} in all)" if len(ranks) > 6 else "")


def normalised_data_weight(channel: Channel, data_weight: float) -> float:
    """Return a_i = n v_i / sum v for this rank's v_i. Collective.

    Raises:
        ConfigurationError: some rank's data weight is not a finite number above 0; the same on every rank.
    """
    rows = channel.gather(struct.pack("<d", data_weight), "comparing data weights")
    weights = np.frombuffer(rows.tobytes(), np.float64)
    bad = [rank for rank, weight in enumerate(weights) if not 0 < weight < float("inf")]
    if bad:
        channel.let_everyone_know()
        holders = named_ranks([channel.job_rank(rank) for rank in bad])
        raise ConfigurationError(
            f"rank {channel.job_rank()}: data_weight={weights[bad[0]]} on {holders}: expected a finite number above "
            "0, such as the number of samples of that rank"
        )
    if (weights == weights[0]).all():
        return 1.0
    return float(channel.size * (data_weight / weights.sum()))


def shared_run(channel: Channel, mine: bytes) -> str:
    """Return rank 0's random bytes in hexadecimal: they name this run. Collective."""
    buffer = np.frombuffer(bytearray(mine), np.uint8)
    channel.broadcast(buffer, 0, "naming the run")
    return buffer.tobytes().hex()
