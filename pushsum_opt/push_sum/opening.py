"""What construction does before the first round: arguments, parts, and what all ranks must have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..arguments import Staleness
from ..channel import Channel, agreement
from ..errors import ConfigurationError
from ..gossip.asynchronous import AsynchronousGossip
from ..gossip.overlapped import OverlappedGossip
from ..gossip.pace import Pace
from ..gossip.protocol import Exchange, Gossip
from ..gossip.synchronous import SynchronousGossip
from ..gossip.wire import VERSION
from ..graphs import Graph
from ..hosts import Participant
from ..memory import Memory
from ..observe.advice import OverlapAdvice
from ..observe.events import Events, Listener
from ..observe.stall import StallInspector

__all__ = ["check_arguments", "events", "fingerprint", "make_gossip", "name_the_run", "named", "versions"]


def check_arguments(staleness: Any, data_weight: Any, nonfinite: Any, timeout: Any) -> None:
    """Raise ConfigurationError for a value that cannot be used."""
    if isinstance(staleness, bool) or not (isinstance(staleness, int) or staleness == "unbounded"):
        raise ConfigurationError(f"staleness={staleness!r}: expected an int of at least 0, or 'unbounded'")
    if isinstance(staleness, int) and staleness < 0:
        raise ConfigurationError(f"staleness={staleness!r}: expected an int of at least 0, or 'unbounded'")
    if isinstance(data_weight, bool) or not isinstance(data_weight, int | float | np.number):
        raise ConfigurationError(f"data_weight={data_weight!r}: expected a number above 0")
    if nonfinite not in ("raise", "skip"):
        raise ConfigurationError(f"nonfinite={nonfinite!r}: expected 'raise' or 'skip'")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ConfigurationError(f"timeout={timeout!r}: expected seconds, a finite number above 0")


def named(tensors: Sequence[Any] | Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Return names and tensors."""
    if isinstance(tensors, Mapping):
        return list(tensors), list(tensors.values())
    values = list(tensors)
    return [f"tensor {index}" for index in range(len(values))], values


def events(participant: Participant, listeners: Listener, staleness: Staleness) -> Events:
    """Return the events of the rounds, with the library's own listeners.

    Args:
        listeners: hears all of them too.
    """
    ranks = participant.gossip_ranks
    found = Events(None if ranks is None else ranks.__getitem__, holds_merged=participant.lanes > 1)
    found.subscribe(listeners)
    found.subscribe(StallInspector(participant.rank))
    if staleness == 0 and participant.rank == 0 and participant.size > participant.lanes:
        found.subscribe(OverlapAdvice())
    return found


def make_gossip(
    exchange: Exchange, staleness: Staleness, signature: Callable[[], bytes], *, rate_correction: bool
) -> Gossip:
    """Return the way of gossiping that ``staleness`` asks for.

    Args:
        signature: 8 bytes that the next header carries, asked for each round.
    """
    if staleness == 0:
        return SynchronousGossip(exchange, signature)
    if isinstance(staleness, int):
        return OverlappedGossip(exchange, staleness, signature)
    return AsynchronousGossip(exchange, signature, Pace() if rate_correction else None)


# ---------------------------------------------------------------------- what all ranks have in common


def fingerprint(memory: Memory, graph: Graph, size: int, staleness: Staleness, nonfinite: str) -> dict[str, str]:
    """Return what must be equal on all ranks, by names that a user understands.

    Args:
        size: the number of participants.
    """
    described = memory.described()
    return {
        "the number of tensors": str(len(described)),
        **described,
        "graph": f"{graph!r} ({graph.fingerprint(size)[:12]})",
        "staleness": repr(staleness),
        "nonfinite": repr(nonfinite),
        "the size of chunks (PUSHSUM_CHUNK_BYTES)": str(memory.chunk_bytes),
        "the layout of messages": memory.layout.hex(),
        "the version of the wire": str(VERSION),
    }


def versions() -> dict[str, str]:
    """Return what had better be equal on all ranks."""
    torch = sys.modules.get("torch")
    return {
        "numpy": np.__version__,
        "torch": str(torch.__version__) if torch is not None else "not loaded",
    }


def name_the_run(channel: Channel, participant: Participant) -> tuple[str, str]:
    """Collective. Return a random name of this run, common to all ranks of the channel, and one common to the job."""
    run = name = agreement.shared_run(channel, os.urandom(8))
    for inside in participant.channels:
        name = agreement.shared_run(inside, bytes.fromhex(run))
    return run, name
