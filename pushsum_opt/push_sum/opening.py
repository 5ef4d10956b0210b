"""What construction does before the first round: arguments, parts, and what all ranks must have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import cuda_aware, graphs, settings, transport
from .. import memory as memories
from ..arguments import DType, GraphLike, Nonfinite, Staleness
from ..channel import Channel, agreement, by_communicator
from ..errors import ConfigurationError, GraphError
from ..gossip.asynchronous import AsynchronousMode
from ..gossip.overlapped import OverlappedMode
from ..gossip.pace import Pace
from ..gossip.protocol import Exchange, Mode
from ..gossip.synchronous import SynchronousMode
from ..gossip.wire import VERSION
from ..graphs import Graph
from ..hosts import Participant
from ..log import log
from ..memory import Memory
from ..observe.advice import OverlapAdvice
from ..observe.events import Events, Listener
from ..observe.missed import MissedBlocks
from ..observe.stall import StallInspector
from ..transport import Transport, calling

__all__ = [
    "CALL",
    "Options",
    "WrapperOptions",
    "bind_memory",
    "connect",
    "events",
    "fingerprint",
    "graph_of_survivors",
    "make_mode",
    "messages_kept",
    "name_the_run",
    "named",
    "versions",
]

CALL = "PushSum(...)"


@dataclass(frozen=True)
class Options:
    """How to exchange: the arguments of :class:`~pushsum_opt.PushSum` that are plain values.

    Raises:
        ConfigurationError: a value cannot be used.
    """

    staleness: Staleness
    data_weight: float
    wire_dtype: DType | None
    nonfinite: Nonfinite
    timeout: float
    rate_correction: bool

    def __post_init__(self) -> None:
        staleness, timeout = self.staleness, self.timeout
        counted = isinstance(staleness, int) and not isinstance(staleness, bool) and staleness >= 0
        if not counted and staleness != "unbounded":
            raise ConfigurationError(f"staleness={staleness!r}: expected an int of at least 0, or 'unbounded'")
        if isinstance(self.data_weight, bool) or not isinstance(self.data_weight, int | float | np.number):
            raise ConfigurationError(f"data_weight={self.data_weight!r}: expected a number above 0")
        if self.nonfinite not in ("raise", "skip"):
            raise ConfigurationError(f"nonfinite={self.nonfinite!r}: expected 'raise' or 'skip'")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise ConfigurationError(f"timeout={timeout!r}: expected seconds, a finite number above 0")


@dataclass(frozen=True)
class WrapperOptions:
    """What a wrapper around a push-sum adds."""

    owner: Any = None
    """The wrapper. Once it is dropped on every rank, the next construction closes what it owned."""
    by_element: Collection[str] = ()
    """Names of tensors that are merged element by element, as buffers are: an element that is inf or nan, here or
    there, stays what it is here, and is no error."""
    alike: Mapping[str, str] = field(default_factory=dict)
    """What must be equal on all ranks, by names that a user understands. It is compared first: a difference here causes
    differences of tensors."""
    leave_out: Callable[[Iterable[Channel]], Collection[str]] | None = None
    """Collective over channels; returns the names of tensors that are not exchanged after all."""


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


ASYNCHRONOUS_KEPT = 4
"""Messages to one peer of which an asynchronous rank keeps the mass: the peer has begun to receive all but the last."""


def messages_kept(graph: Graph, participants: int, options: Options) -> int:
    """Return of how many messages to one peer the mass must be kept, until that peer has surely opened the older ones.

    Over a window of rounds the graph is strongly connected. So after n windows every rank has heard, through others, of
    every other rank; and a rank that goes on has opened what was due before.
    """
    if options.staleness == "unbounded":
        return ASYNCHRONOUS_KEPT
    return (participants + 1) * (graph.window(participants) + int(options.staleness) + 1)


def graph_of_survivors(given: GraphLike | None, before: Graph, size: int, *, speaks: bool) -> Graph:
    """Return the same rule for fewer ranks; where it has none for so many, the default.

    Args:
        given: what the user gave.
        before: what it was until now.
    """
    try:
        return graphs.resolve(given, size, warn=False)
    except GraphError as error:
        if speaks:
            log.warning(
                "%r is no graph for the %d ranks that are left (%s): the default takes its place", before, size, error
            )
        return graphs.resolve(None, size, warn=False)


def connect(comm: Any, memory: Memory, options: Options, participant: Participant) -> Transport:
    """Collective. Return what carries messages of the memory's buffers."""
    with memory.prepared_thread(), calling(CALL):
        return transport.connect(
            comm,
            background=options.staleness != 0,
            prepare=memory.prepare_worker,
            pending_buffers=memory.pending_buffers,
            timeout=options.timeout,
            ranks=participant.gossip_ranks,
            report=by_communicator.report(participant.comm),
        )


def events(participant: Participant, listeners: Listener, staleness: Staleness, memory: Memory) -> Events:
    """Return the events of the rounds, with the library's own listeners.

    Args:
        listeners: hears all of them too.
        memory: what the messages come to.
    """
    ranks = participant.gossip_ranks
    found = Events(None if ranks is None else ranks.__getitem__, holds_merged=participant.lanes > 1)
    found.subscribe(listeners)
    found.subscribe(StallInspector(participant.rank))
    if memory.codes:
        found.subscribe(MissedBlocks(participant.rank, lambda: memory.blocks))
    if staleness == 0 and participant.rank == 0 and participant.size > participant.lanes:
        found.subscribe(OverlapAdvice())
    return found


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


def fingerprint(memory: Memory, graph: Graph, size: int, options: Options) -> dict[str, str]:
    """Return what must be equal on all ranks, by names that a user understands.

    Args:
        size: the number of participants.
    """
    described = memory.described()
    return {
        "the number of tensors": str(len(described)),
        **described,
        "graph": f"{graph!r} ({graph.fingerprint(size)[:12]})",
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
