"""One rank as a member of a push-sum: its parts, its mass, and what other rooms of the library ask of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .. import graphs, transport
from ..arguments import GraphLike
from ..channel import Channel
from ..channel.agreement import agree, normalised_data_weight
from ..channel.together import together
from ..clock import Clock
from ..errors import CallOrderError, RanksLost
from ..faults import Account, Ledger, Settlement
from ..gossip.means import Means, window_of
from ..gossip.merging import Merger
from ..gossip.protocol import Exchange
from ..gossip.sketch import Sketch
from ..gossip.wire import Header
from ..hosts import Participant
from ..job import world
from ..observe.events import Events
from ..observe.statistics import Statistics
from ..observe.whereabouts import Whereabouts
from ..start.first_step import NOTHING, FirstStep
from ..transport.calls import calling
from . import closing, opening, succession
from .following import Follower
from .host_calls import HostCalls
from .lifetime import WHOLE, Lifetime
from .mass import Mass
from .opening import CALL, Options, WrapperOptions
from .survival import Survival

__all__ = ["Member", "newest"]


class Member:
    """One rank of a push-sum. Construction is collective.

    Args:
        comm: all participants of the gossip.
        tensors, graph, wrapper: as in :class:`~pushsum_opt.PushSum`.
        host: this rank, or the ranks of its host, as one participant.
    """

    def __init__(
        self,
        comm: Any,
        tensors: Sequence[Any] | Mapping[str, Any],
        graph: GraphLike | None,
        options: Options,
        host: Participant,
        wrapper: WrapperOptions | None,
        survival: Survival,
    ) -> None:
        names, values = opening.named(tensors)
        wrapper = WrapperOptions() if wrapper is None else wrapper
        self.options = options
        self.survival = survival
        """What is done when ranks have died."""
        self._graph = graph
        self.memory = opening.bind_memory(comm, values, names, options, host, wrapper.by_element)
        # A spare is alone until the others take it in; no graph of the user's needs to be one for a single rank.
        self.graph: graphs.Graph = graphs.resolve(
            None if survival.waits else graph, comm.Get_size(), warn=host.rank == 0
        )
        self.statistics = Statistics()
        self.listeners = Events()
        """Who follows what this rank does; other channels of this rank report their waits here too."""
        self.listeners.subscribe(self.statistics)
        self._whereabouts = Whereabouts(self._answer)
        self.listeners.subscribe(self._whereabouts)
        self._connect(comm, host)
        self.process = transport.process(comm)
        self.held: list[Any] = values
        """The tensors that are exchanged; none once closed."""
        self.host_calls = HostCalls(survival)
        """What the ranks of a host do together between rounds."""
        self.followers: list[Follower] = [self.host_calls]
        """What survivors of a loss have to take up again beside the rounds; the same on every rank."""
        self.before_close: list[Callable[[], None]] = []
        """Called first when this is closed: all ranks must close together what they made together."""
        self.moments: Callable[[], frozenset[int]] = frozenset
        """Gives the identities of tensors that travel and are no parameters, but averages of gradients."""
        self.restores_exactly = False
        """Whether :meth:`PushSum.load_state` takes over push weight, residuals and messages in flight as they were."""
        self.saves_messages = True
        """Whether :meth:`PushSum.state` holds copies of the messages that have come and are not merged."""
        self._owner = None if wrapper.owner is None else weakref.ref(wrapper.owner)
        self._first_step: FirstStep | None = None
        partners = self.graph.partners(self.participant, self.participants)
        self.lifetime = Lifetime(self.channel, partners, host, lambda: self.round, survives=survival.continues)
        """What may be called now, and who is told when this rank fails."""
        self.mass = Mass.begin(1.0)
        """w, a and k of this rank."""
        self.initial_of_all: tuple[float, ...] = ()
        """a of every participant, once others than at the start take part."""
        self._resumes_at = 0
        self.means = Means(
            lambda: window_of(self.graph, self.participants, self.options.staleness),
            lambda rank: self.job_rank(rank),
            Sketch(self.memory, self.host.lanes, lambda: self.moments()),
        )
        """What this rank and others report."""
        self.stands_still = False
        """Whether it takes no part in the exchange, as ranks have died and the others have not settled that."""
        self._around_late_merges: Callable[[int], AbstractContextManager[None]] | None = None
        try:
            with self.failing_together(), calling(CALL):
                self._agree_on(wrapper)
                self.agree(opening.versions())
                self.mass = Mass.begin(normalised_data_weight(self.channel, options.data_weight))
                self.run, self.name = opening.name_the_run(self.channel, host)
                succession.close_what_is_over(self, self.held)
                self._begin_to_gossip()
        except RanksLost:
            raise  # the recovery revokes the transport: others may wait on it for this rank; that ends the thread too
        except BaseException:
            self.give_up()  # a thread would go on for ever, and hold the tensors
            raise
        self.process.register(self)

    def _connect(self, comm: Any, host: Participant) -> None:
        """Collective. Take a place among the ranks of a communicator."""
        self.host = host
        """This rank, or the ranks of its host, as one participant."""
        self.comm = host.comm
        """The communicator of all ranks of the job."""
        self.rank: int = host.rank
        """This rank, among all of the job."""
        self.size: int = host.size
        """The number of ranks of the job."""
        self.speaks = self.rank == 0 and not self.survival.waits
        """Whether this is the one rank of the job that speaks for all."""
        host.subscribe(self.listeners)
        self.events = opening.events(host, self.listeners, self.options.staleness, self.memory)
        self.transport = opening.connect(comm, self.memory, self.options, host)
        if self.transport.progress is not None:
            self.transport.progress.roll.whereabouts = self._whereabouts
        self.channel = Channel(self.transport, self.events, self.options.timeout)
        """Over all participants of the gossip."""
        self.channels = (self.channel, *host.channels)
        """What goes over these, one after the other, reaches every rank of the job."""
        self.participant = self.channel.rank
        """The number of this rank in the gossip; where a host is one participant, of its host."""
        self.participants = self.channel.size
        """How many take part in the gossip: the n of the graph, and of the mass."""
        self.ledger = Ledger(opening.messages_kept(self.graph, self.participants, self.options))
        """What was given and accepted since ranks were last lost."""

    def _begin_to_gossip(self) -> None:
        """Make what a round works with."""
        options, epoch = self.options, self.survival.epoch
        self._merger = Merger(
            self.memory,
            self.events,
            self.participant,
            options.nonfinite,
            self._greet,
            self.job_rank,
            epoch,
        )
        if self._around_late_merges is not None:
            self._merger.around = self._around_late_merges
        exchange = Exchange(
            self.memory,
            self.channel,
            self.graph,
            self.events,
            self._merger,
            self.mass.initial,
            self.ledger,
            self.means,
            epoch,
        )
        self.mode = opening.make_mode(exchange, options, self._signature)
        """Which messages a round merges."""

    def _agree_on(self, wrapper: WrapperOptions) -> None:
        """Collective. Compare what explains other differences; leave out what some rank cannot exchange."""
        if wrapper.alike:
            for channel in (self.channel, *self.host.replicas):
                agree(channel, wrapper.alike)
        if wrapper.leave_out is not None:
            self.memory.leave_out(wrapper.leave_out(self.channels))
            self.held = list(self.memory.tensors.values())

    def agree(self, versions: Mapping[str, str] | None = None) -> None:
        """Collective. Make sure that all ranks exchange the same things in the same way."""
        mine = opening.fingerprint(self.memory, self.graph, self.participants, self.options)
        agree(self.channel, mine, versions)
        for channel in self.host.replicas:
            agree(channel, mine)

    # ------------------------------------------------------------------ what it is now

    @property
    def round(self) -> int:
        """k, the number of rounds completed."""
        return self.mass.round

    @property
    def push_weight(self) -> float:
        """w, this rank's push weight."""
        return self.mass.weight

    @property
    def data_weight(self) -> float:
        """v_i, this rank's part in the average, as it was given."""
        return float(self.options.data_weight) * self.host.data_fraction

    @property
    def started_as(self) -> int:
        """The number of this rank when the job was started."""
        return self.survival.ranks[self.rank] if self.survival.continues else self.rank

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.lifetime.closed

    @property
    def failed(self) -> bool:
        """Whether an error has ended the exchange."""
        return self.lifetime.failure is not None

    @property
    def owned(self) -> bool:
        """Whether a wrapper was made around it."""
        return self._owner is not None

    @property
    def dropped(self) -> bool:
        """Whether the wrapper around it is gone on this rank. It may live on others: never act on it alone."""
        return self._owner is not None and self._owner() is None

    @property
    def tensor_ids(self) -> frozenset[int]:
        """The identities of the tensors that are exchanged; none once closed."""
        return frozenset(id(tensor) for tensor in self.held)

    def job_rank(self, rank: int | None = None) -> int:
        """Return a participant of the gossip, or this one, by its number in the job."""
        return self.transport.job_rank(rank)

    def meetings(self, call: str, count: int, clock: Clock) -> list[tuple[float, float]]:
        """Collective over the job. Let all ranks meet so often; return when this one came and left each time."""

        def meet(channel: Channel) -> list[tuple[float, float]]:
            moments = []
            for _ in range(count):
                came = clock()
                channel.barrier(call)
                moments.append((came, clock()))
            return moments

        return together(self.comm, call, meet)

    # ------------------------------------------------------------------ calls, as contexts

    @contextmanager
    def collective(self, call: str, left: str = WHOLE) -> Iterator[None]:
        """Inside, this rank makes a collective call: listeners and errors name it; the others hear of failures.

        Args:
            left: what an interrupt inside leaves of the tensors.
        """
        with self.failing_together(left), calling(call), self.during(call):
            yield

    @contextmanager
    def during(self, call: str) -> Iterator[None]:
        """Tell listeners when a collective call begins and ends."""
        round = self.round
        self.events.call_begins(call, round)
        try:
            yield
        finally:
            self.events.call_ends(call, round)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Tell listeners when a local step begins and ends."""
        round = self.round
        self.events.local_step_begins(round)
        try:
            yield
        finally:
            self.events.local_step_ends(round)

    def failing_together(self, left: str = WHOLE) -> AbstractContextManager[None]:
        """Return a context that tells the other ranks when this one fails in it, and refuses to go on afterwards.

        Args:
            left: what an interrupt inside leaves of the tensors.
        """
        return self.lifetime.failing_together(left)

    def ending_together(self) -> AbstractContextManager[None]:
        """Return a context as :meth:`failing_together`, for interrupts only: all ranks have the same errors."""
        return self.lifetime.failing_together(only_interrupts=True)

    def refuse_while_waiting(self, call: str) -> None:
        """Raise CallOrderError for a call of all ranks, on a spare that the others have not taken in."""
        if self.survival.waits:
            raise CallOrderError(world.told_to_wait(call))

    def around_late_merges(self, context: Callable[[int], AbstractContextManager[None]]) -> None:
        """Have messages that outlive their round merged inside a context, made from the round in which they were sent.

        For tensors that change in a known way while messages of them are in flight.
        """
        self._around_late_merges = self._merger.around = context

    # ------------------------------------------------------------------ when ranks have died

    @property
    def catches_up(self) -> bool:
        """Whether this rank was behind others when ranks were lost: it takes its next steps without gossip."""
        return self.mass.round < self._resumes_at

    @property
    def resumes_at(self) -> int:
        """The first round in which survivors of the last loss gossip again; ranks that are not in step: this one's."""
        return self._resumes_at

    def stand_still(self) -> None:
        """Take no more part in the exchange with ranks of which some have died. Idempotent."""
        if self.stands_still:
            return
        self.stands_still = True
        self.ledger.begin(self.push_weight)
        if self.lifetime.on_loan is None:  # otherwise the tensors are not this rank's own now
            self.mode.merge_restored()
        self._merger.report(wait=True)
        self.mass = self.mass.with_weight(self.ledger.weight)
        self.transport.close()

    def settle(self, settlement: Settlement, account: Account, place: int) -> None:
        """Take over what survivors have agreed on.

        Args:
            account: that of this rank.
            place: the number of this rank among them.
        """
        self.initial_of_all = settlement.initial
        initial = settlement.initial[place]
        self.mass = Mass(account.weight * settlement.factor, initial, self.round)
        self.memory.scale_residuals(settlement.factor)
        self.means.move()
        self._resumes_at = settlement.round if self.options.staleness != "unbounded" else self.round
        self.participant, self.participants = place, len(settlement.initial)
        self.ledger = Ledger(0)  # nothing is sent before rejoin()

    def rejoin(self, comm: Any) -> None:
        """Collective over the survivors. Exchange with them from now on."""
        host = self.host.among(comm)
        size = host.gossip_comm.Get_size()
        self.graph = opening.graph_of_survivors(self._graph, self.graph, size, speaks=host.rank == 0)
        try:
            self._connect(host.gossip_comm, host)
            self.lifetime.move(self.channel, self.graph.partners(self.participant, self.participants), host)
            self._begin_to_gossip()
        except BaseException:  # another rank has died: what was opened half-way is of no use
            self.transport.close()
            raise
        self.stands_still = False

    # ------------------------------------------------------------------ the first step

    def watch_first_step(self, alike: Callable[[int], None]) -> None:
        """Compare this rank's first local step with its in-peers'; ``alike(peer)`` is called where they are equal."""
        self._first_step = FirstStep(self.memory, alike)

    def first_step_is_over(self) -> None:
        """The first local step, if any, was before this call."""
        if self._first_step is not None:
            self._first_step.taken()

    def _signature(self) -> bytes:
        return self._first_step.signature if self._first_step is not None and self.round == 0 else NOTHING

    def _greet(self, peer: int, header: Header) -> None:
        if self.transport.progress is not None:
            self.transport.progress.heard(peer, header.round)
        if self._first_step is not None:
            self._first_step.compare(peer, header.signature)

    # ------------------------------------------------------------------ what other ranks ask

    def _answer(self) -> None:
        """Tell ranks that wait for this one where it is, while it computes."""
        progress = self.transport.progress
        if progress is None or self.closed or self.failed or self.stands_still or self.lifetime.forked:
            return
        with self.transport.alone():
            progress.roll.listen_if_quiet(moved=True)

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Collective. See :meth:`PushSum.close`."""
        closing.close(self)

    def close_unchanged(self) -> None:
        """Collective. Close, and leave the tensors as they are: what is in flight is given up, with its mass."""
        closing.close_unchanged(self)

    def give_up(self) -> None:
        """Free threads and the transport, without the other ranks: for the end of a run in one process."""
        self.lifetime.closed = True
        self.transport.close()
        self.host.close(cleanly=False)

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks that this one cannot go on, and why."""
        self.lifetime.fail(error, self.round)


def newest(comm: Any) -> Member | None:
    """Return the open member that was made last on a communicator, if any."""
    here: list[Member] = [one for one in transport.process(comm).members if one.comm == comm]
    return here[-1] if here else None
