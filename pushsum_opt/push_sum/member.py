"""One rank as a member of a push-sum: its parts, its mass, and how it moves to another place when ranks have died."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from .. import graphs, transport
from ..arguments import GraphLike
from ..channel.agreement import normalised_data_weight
from ..errors import RanksLost
from ..faults import Account, Settlement
from ..gossip.means import Means
from ..gossip.merging import Merger
from ..gossip.protocol import Exchange, Mode
from ..gossip.sketch import Sketch
from ..gossip.windows import window_of
from ..gossip.wire import Header
from ..hosts import Participant
from ..observe.events import Events
from ..observe.statistics import Statistics
from ..observe.whereabouts import Whereabouts
from ..start.first_step import FirstStep
from ..transport.calls import calling
from . import closing, opening
from .calls import Calls
from .following import Follower
from .host_calls import HostCalls
from .lifetime import Lifetime
from .mass import Mass
from .options import CALL, Options, WrapperOptions
from .place import Place
from .succession import Owner, close_what_is_over
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
        self.owner = Owner(wrapper.owner)
        self.memory = opening.bind_memory(comm, values, names, options, host, wrapper.by_element)
        self.held: list[Any] = values
        """The tensors that are exchanged; none once closed."""
        self.statistics = Statistics()
        self.listeners = Events()
        """Who follows what this rank does; other channels of this rank report their waits here too."""
        self.listeners.subscribe(self.statistics)
        self._whereabouts = Whereabouts(self._answer)
        self.listeners.subscribe(self._whereabouts)
        self._given_graph = graph
        # A spare is alone until the others take it in; no graph of the user's needs to be one for a single rank.
        here = graphs.resolve(None if survival.waits else graph, comm.Get_size(), warn=host.rank == 0)
        self.place = self._take_place(comm, host, here)
        """This rank among those that exchange; another one after a loss."""
        self.stands_still = False
        """Whether it takes no part in the exchange, as ranks have died and the others have not settled that."""
        self.process = transport.process(comm)
        self.lifetime = Lifetime(
            self.place.channel, self.place.partners, host, lambda: self.round, survives=survival.continues
        )
        """What may be called now, and who is told when this rank fails."""
        self.calls = Calls(self.lifetime, lambda: self.round, lambda: self.place.events)
        """The collective calls that this rank makes."""
        self.host_calls = HostCalls(survival)
        """What the ranks of a host do together between rounds."""
        self.followers: list[Follower] = [self.host_calls]
        """What survivors of a loss have to take up again beside the rounds; the same on every rank."""
        self.before_close: list[Callable[[], None]] = []
        """Called first when this is closed: all ranks must close together what they made together."""
        self.moments: Callable[[], frozenset[int]] = frozenset
        """Gives the identities of tensors that travel and are no parameters, but averages of gradients."""
        self.around_late_merges: Callable[[int], AbstractContextManager[None]] = lambda sent: nullcontext()
        """Makes a context in which messages that outlive their round are merged, from the round in which they were
        sent: for tensors that change in a known way while messages of them are in flight."""
        self.restores_exactly = False
        """Whether :meth:`PushSum.load_state` takes over push weight, residuals and messages in flight as they were."""
        self.saves_messages = True
        """Whether :meth:`PushSum.state` holds copies of the messages that have come and are not merged."""
        self.first_step = FirstStep(self.memory)
        """Compares this rank's first local step with its in-peers'."""
        self.mass = Mass.begin(1.0)
        """w, a and k of this rank."""
        self.means = Means(
            lambda: window_of(self.place.graph, self.place.participants, options.staleness),
            lambda rank: self.place.transport.job_rank(rank),
            Sketch(self.memory, host.lanes, lambda: self.moments()),
        )
        """What this rank and others report."""
        try:
            with self.lifetime.failing_together(), calling(CALL):
                opening.agree_on_wrapper(self.place, self.memory, wrapper)
                self.held = list(self.memory.tensors.values())
                opening.agree(self.place, self.memory, options, opening.versions())
                self.mass = Mass.begin(normalised_data_weight(self.place.channel, options.data_weight))
                self.run, self.name = opening.name_the_run(self.place.channel, host)
                close_what_is_over(self, self.held)
                self.mode = self._make_mode()
                """Which messages a round merges."""
        except RanksLost:
            raise  # the recovery revokes the transport: others may wait on it for this rank; that ends the thread too
        except BaseException:
            self.give_up()  # a thread would go on for ever, and hold the tensors
            raise
        self.process.register(self)

    def _take_place(self, comm: Any, host: Participant, graph: graphs.Graph) -> Place:
        """Collective. Take a place among the ranks of a communicator."""
        return Place.take(
            comm,
            host,
            graph,
            self.memory,
            self.options,
            self.listeners,
            self._whereabouts,
            waits=self.survival.waits,
        )

    def _make_mode(self) -> Mode:
        """Return what decides which messages a round merges, at the place where this rank is."""
        place, epoch = self.place, self.survival.epoch
        merger = Merger(
            self.memory,
            place.events,
            place.participant,
            self.options.nonfinite,
            self._greet,
            place.transport.job_rank,
            epoch,
            lambda sent: self.around_late_merges(sent),
        )
        exchange = Exchange(
            self.memory,
            place.channel,
            place.graph,
            place.events,
            merger,
            self.mass.initial,
            place.ledger,
            self.means,
            epoch,
        )
        return opening.make_mode(exchange, self.options, lambda: self.first_step.signature(self.round))

    def _greet(self, peer: int, header: Header) -> None:
        self.place.heard(peer, header.round)
        self.first_step.compare(peer, header.signature)

    def _answer(self) -> None:
        """Tell ranks that wait for this one where it is, while it computes."""
        if not (self.closed or self.failed or self.stands_still or self.lifetime.forked):
            self.place.answer()

    # ------------------------------------------------------------------ what it is now

    @property
    def comm(self) -> Any:
        """The communicator of all ranks of the job."""
        return self.place.host.comm

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
        return float(self.options.data_weight) * self.place.host.data_fraction

    @property
    def started_as(self) -> int:
        """The number of this rank when the job was started."""
        return self.survival.ranks[self.place.rank] if self.survival.continues else self.place.rank

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.lifetime.closed

    @property
    def failed(self) -> bool:
        """Whether an error has ended the exchange."""
        return self.lifetime.failure is not None

    # ------------------------------------------------------------------ when ranks have died

    def stand_still(self) -> None:
        """Take no more part in the exchange with ranks of which some have died. Idempotent."""
        if self.stands_still:
            return
        self.stands_still = True
        ledger = self.place.ledger
        ledger.begin(self.push_weight)
        if self.lifetime.on_loan is None:  # otherwise the tensors are not this rank's own now
            self.mode.merge_restored()
        self.mode.report_merges()
        self.mass = self.mass.with_weight(ledger.weight)
        self.place.transport.close()

    def settle(self, settlement: Settlement, account: Account, place: int) -> None:
        """Take over what survivors have agreed on.

        Args:
            account: that of this rank.
            place: the number of this rank among them.
        """
        self.mass = Mass(account.weight * settlement.factor, settlement.initial[place], self.round)
        self.memory.scale_residuals(settlement.factor)
        self.means.move()
        in_step = self.options.staleness != "unbounded"
        self.place = self.place.settled(settlement, place, settlement.round if in_step else self.round)

    def rejoin(self, comm: Any) -> None:
        """Collective over the survivors. Exchange with them from now on."""
        self.place = settled = self.place.among(comm, self._given_graph)
        try:
            self.place = replace(
                self._take_place(settled.host.gossip_comm, settled.host, settled.graph),
                initial_of_all=settled.initial_of_all,
                resumes_at=settled.resumes_at,
            )
            self.lifetime.move(self.place.channel, self.place.partners, self.place.host)
            self.mode = self._make_mode()
        except BaseException:  # another rank has died: what was opened half-way is of no use
            self.place.transport.close()
            raise
        self.stands_still = False

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Collective. See :meth:`PushSum.close`."""
        closing.close(self)

    def give_up(self) -> None:
        """Free threads and the transport, without the other ranks: for the end of a run in one process."""
        self.lifetime.closed = True
        self.place.transport.close()
        self.place.host.close(cleanly=False)

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks that this one cannot go on, and why."""
        self.lifetime.fail(error, self.round)


def newest(comm: Any) -> Member | None:
    """Return the open member that was made last on a communicator, if any."""
    here: list[Member] = [one for one in transport.process(comm).members if one.comm == comm]
    return here[-1] if here else None
