"""The place of one rank among those that exchange: who they are, and what it reaches them by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .. import graphs, transport
from ..arguments import GraphLike, Staleness
from ..channel import Channel, by_communicator
from ..channel.together import together
from ..clock import Clock
from ..errors import GraphError
from ..faults import Ledger, Settlement
from ..graphs import Graph
from ..hosts import Participant
from ..log import log
from ..memory import Memory
from ..observe.advice import OverlapAdvice
from ..observe.events import Events, Listener
from ..observe.missed import MissedBlocks
from ..observe.stall import StallInspector
from ..observe.whereabouts import Whereabouts
from ..transport import Transport, calling
from .options import CALL, Options

__all__ = ["Place"]


@dataclass(frozen=True, eq=False)
class Place:
    """One rank among those that exchange. It does not change: a rank that moves gets another place.

    Ranks move when some have died, and when spares are taken in.
    """

    host: Participant
    """This rank, or the ranks of its host, as one participant."""

    graph: Graph
    """Who sends to whom."""

    participant: int
    """The number of this rank in the gossip; where a host is one participant, of its host."""

    participants: int
    """How many take part in the gossip: the n of the graph, and of the mass."""

    channel: Channel
    """Over all participants of the gossip."""

    events: Events
    """The points of the rounds, for those who listen."""

    ledger: Ledger
    """What was given and accepted since ranks were last lost."""

    speaks: bool
    """Whether this is the one rank of the job that speaks for all."""

    initial_of_all: tuple[float, ...] = ()
    """a of every participant, once others than at the start take part."""

    resumes_at: int = 0
    """The first round in which survivors of the last loss gossip again; ranks that are not in step: this one's."""

    @classmethod
    def take(
        cls,
        comm: Any,
        host: Participant,
        graph: Graph,
        memory: Memory,
        options: Options,
        listeners: Listener,
        whereabouts: Whereabouts,
        *,
        waits: bool,
    ) -> Place:
        """Collective. Connect with the other participants.

        Args:
            comm: all participants of the gossip.
            memory: what the messages come to.
            listeners: hears all events too.
            whereabouts: what this rank answers to those that wait for it.
            waits: it is a spare that the others have not taken in.
        """
        host.subscribe(listeners)
        events = _events(host, listeners, options.staleness, memory)
        ledger = Ledger(_messages_kept(graph, comm.Get_size(), options))
        channel = Channel(_connect(comm, memory, options, host), events, options.timeout)
        if channel.transport.progress is not None:
            channel.transport.progress.roll.whereabouts = whereabouts
        speaks = host.rank == 0 and not waits
        return cls(host, graph, channel.rank, channel.size, channel, events, ledger, speaks)

    # ------------------------------------------------------------------ who is here

    @property
    def rank(self) -> int:
        """This rank, among all of the job."""
        return self.host.rank

    @property
    def size(self) -> int:
        """The number of ranks of the job."""
        return self.host.size

    @property
    def partners(self) -> frozenset[int]:
        """Every participant that this one ever gives to or takes from."""
        return self.graph.partners(self.participant, self.participants)

    @property
    def transport(self) -> Transport:
        """What carries the messages."""
        return self.channel.transport

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What goes over these, one after the other, reaches every rank of the job."""
        return (self.channel, *self.host.channels)

    # ------------------------------------------------------------------ what goes on beside the rounds

    def heard(self, peer: int, round: int) -> None:
        """A message of a round has come from a participant."""
        if self.transport.progress is not None:
            self.transport.progress.heard(peer, round)

    def answer(self) -> None:
        """Tell ranks that wait for this one where it is, while it computes."""
        progress = self.transport.progress
        if progress is not None:
            with self.transport.alone():
                progress.roll.listen_if_quiet(moved=True)

    def meetings(self, call: str, count: int, clock: Clock) -> list[tuple[float, float]]:
        """Collective over the job. Let all ranks meet so often; return when this one came and left each time."""

        def meet(channel: Channel) -> list[tuple[float, float]]:
            moments = []
            for _ in range(count):
                came = clock()
                channel.barrier(call)
                moments.append((came, clock()))
            return moments

        return together(self.host.comm, call, meet)

    # ------------------------------------------------------------------ when ranks have died

    def settled(self, settlement: Settlement, participant: int, resumes_at: int) -> Place:
        """Return what is known of the next place before this rank has taken it: nothing is given and accepted there.

        Args:
            participant: the number of this rank among those that go on.
        """
        return replace(
            self,
            participant=participant,
            participants=len(settlement.initial),
            ledger=Ledger(0),
            initial_of_all=settlement.initial,
            resumes_at=resumes_at,
        )

    def among(self, comm: Any, given: GraphLike | None) -> Place:
        """Collective. Return the same with the host and the graph of this rank among others.

        Args:
            comm: all of them, such as the survivors of a loss.
            given: the graph that the user gave.
        """
        host = self.host.among(comm)
        graph = _graph_of_survivors(given, self.graph, host.gossip_comm.Get_size(), speaks=host.rank == 0)
        return replace(self, host=host, graph=graph)


def _connect(comm: Any, memory: Memory, options: Options, participant: Participant) -> Transport:
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


def _events(participant: Participant, listeners: Listener, staleness: Staleness, memory: Memory) -> Events:
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


ASYNCHRONOUS_KEPT = 4
"""Messages to one peer of which an asynchronous rank keeps the mass: the peer has begun to receive all but the last."""


def _messages_kept(graph: Graph, participants: int, options: Options) -> int:
    """Return of how many messages to one peer the mass must be kept, until that peer has surely opened the older ones.

    Over a window of rounds the graph is strongly connected. So after n windows every rank has heard, through others, of
    every other rank; and a rank that goes on has opened what was due before.
    """
    if options.staleness == "unbounded":
        return ASYNCHRONOUS_KEPT
    return (participants + 1) * (graph.window(participants) + int(options.staleness) + 1)


def _graph_of_survivors(given: GraphLike | None, before: Graph, size: int, *, speaks: bool) -> Graph:
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
