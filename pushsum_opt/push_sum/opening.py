"""What construction does before the first round: parts, and what all ranks must have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from .. import cuda_aware, settings
from .. import memory as memories
from ..channel import Channel, agreement
from ..gossip.asynchronous import AsynchronousMode
from ..gossip.overlapped import OverlappedMode
from ..gossip.pace import Pace
from ..gossip.protocol import Exchange, Mode
from ..gossip.synchronous import SynchronousMode
from ..gossip.wire import VERSION
from ..hosts import Participant
from ..memory import Memory
from .options import Options, WrapperOptions
from .place import Place

__all__ = ["agree", "agree_on_wrapper", "bind_memory", "make_mode", "name_the_run", "named", "versions"]


def named(tensors: Sequence[Any] | Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Return names and tensors."""
    if isinstance(tensors, Mapping):
        return list(tensors), list(tensors.values())
    values = list(tensors)
    return [f"tensor {index}" for index in range(len(values))], values


def bind_memory(
    comm: Any,
    tensors: Sequence[Any],
    names: Sequence[str],
    options: Options,
    participant: Participant,
    by_element: Collection[str],
) -> Memory:
    """Return what holds the tensors, for messages over ``comm``.

    Args:
        by_element: names of tensors that are merged element by element.
    """
    who = f"rank {participant.rank}"
    memory: Memory = memories.bind(
        tensors,
        names,
        options.wire_dtype,
        settings.read().chunk_bytes,
        direct=lambda: cuda_aware.takes_device_memory(comm),
        lane=participant.shard,
        who=who,
        by_element=by_element,
    )
    memory.whose = f"{who}: "
    return memory


def make_mode(exchange: Exchange, options: Options, signature: Callable[[], bytes]) -> Mode:
    """Return the mode that ``staleness`` asks for.

    Args:
        signature: 8 bytes that the next header carries, asked for each round.
    """
    if options.staleness == "unbounded":
        return AsynchronousMode(
            exchange, signature, Pace(exchange.transport.clock) if options.rate_correction else None
        )
    if options.staleness == 0:
        return SynchronousMode(exchange, signature)
    return OverlappedMode(exchange, options.staleness, signature)


# ---------------------------------------------------------------------- what all ranks have in common


def agree_on_wrapper(place: Place, memory: Memory, wrapper: WrapperOptions) -> None:
    """Collective. Compare what explains other differences; leave out what some rank cannot exchange."""
    if wrapper.alike:
        for channel in (place.channel, *place.host.replicas):
            agreement.agree(channel, wrapper.alike)
    if wrapper.leave_out is not None:
        memory.leave_out(wrapper.leave_out(place.channels))


def agree(place: Place, memory: Memory, options: Options, versions: Mapping[str, str] | None = None) -> None:
    """Collective. Make sure that all ranks exchange the same things in the same way.

    Args:
        versions: what should be equal on all ranks, and may differ.
    """
    mine = _fingerprint(place, memory, options)
    agreement.agree(place.channel, mine, versions)
    for channel in place.host.replicas:
        agreement.agree(channel, mine)


def _fingerprint(place: Place, memory: Memory, options: Options) -> dict[str, str]:
    """Return what must be equal on all ranks, by names that a user understands."""
    graph, described = place.graph, memory.described()
    return {
        "the number of tensors": str(len(described)),
        **described,
        "graph": f"{graph!r} ({graph.fingerprint(place.participants)[:12]})",
        "staleness": repr(options.staleness),
        "nonfinite": repr(options.nonfinite),
        "the size of chunks (PUSHSUM_CHUNK_BYTES)": str(memory.chunk_bytes),
        "the layout of messages": memory.layout_digest.hex(),
        "the version of the wire": str(VERSION),
        "PUSHSUM_TIMELINE": "not set" if settings.read().timeline is None else "set",
    }


def versions() -> dict[str, str]:
    """Return what should be equal on all ranks, and may differ."""
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
