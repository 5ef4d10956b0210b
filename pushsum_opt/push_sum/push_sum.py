"""The heart: (z, w) of one rank, and the rounds that mix them.

Push-sum (Kempe, Dobra and Gehrke 2003; Assran et al. 2019, Algorithm 1) in de-biased form: the tensors always hold the
estimate z, the push weight w is one float64, and the numerator x = w z is implied.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from .. import combinations, cuda_aware, ending, graphs, settings, world
from .. import memory as memories
from .. import transport as transports
from ..arguments import Communicator, DType, GraphLike, Nonfinite, Staleness
from ..channel import Channel, by_communicator
from ..channel.agreement import agree, normalised_data_weight
from ..errors import NonFiniteError
from ..gossip.merging import Merger
from ..gossip.protocol import Exchange
from ..gossip.wire import HEADER_BYTES, Header
from ..hosts import Participant
from ..interrupts import held_back
from ..memory import Chunk
from ..observe.events import Events, Listener
from ..observe.statistics import Statistics
from ..start.first_step import NOTHING, FirstStep
from ..transport.calls import calling
from . import opening, saving, succession
from .averaging import exact_average
from .lifetime import JOINING, MERGING, WHOLE, Lifetime
from .mass import Mass

__all__ = ["PushSum"]


class PushSum:
    """Averages tensors over ranks by gossip, and keeps count of the mass.

    Each :meth:`mix` gives a share of this rank's mass to its out-peers and merges what its in-peers gave; with nothing
    else done to them, the tensors of all ranks tend to sum_i a_i z_i / n. The tensors are changed in place.
    Construction is collective, as is :meth:`close`.

    Args:
        tensors: torch tensors or numpy arrays, all of one kind, of floating or complex dtypes; or a mapping from names
            to them. Same shapes, strides and dtypes on every rank.
        graph: who sends to whom: a :class:`~pushsum_opt.graphs.Graph`, a function ``(rank, size, round) -> peers``, or
            None for the default of this size.
        staleness: rounds between posting a message and merging it. 0: synchronous. tau >= 1: a thread moves messages
            meanwhile. "unbounded": merge whatever has come, and wait for nobody.
        data_weight: v_i, this rank's part in the average, such as its number of samples; > 0.
        wire_dtype: round wider values to this dtype on the wire ("bfloat16", "float16", "float32", or a dtype);
            the mean over ranks stays exact. None: send as it is.
        nonfinite: "raise" when a message holds inf or nan, or "skip" that part of it.
        comm: an mpi4py communicator, or what :func:`pushsum_opt.testing.run` gives; None for ``MPI.COMM_WORLD``.
        timeout: seconds without progress after which waiting for a peer is an error.
        rate_correction: with ``staleness="unbounded"``, scale local steps by this rank's step time over the mean, so
            that slow ranks count as much as fast ones.
        host: where several ranks of a host are one participant; ``comm`` is ``host.gossip_comm`` then.
        owner: the wrapper around this. Once it is dropped on every rank, the next construction closes what it owned.

        by_element: names of tensors that are merged element by element, as buffers are: an element that is inf or nan,
            here or there, stays what it is here, and is no error.
        alike: what else must be equal on all ranks, by names that a user understands: what explains other differences.
        leave_out: collective over channels; returns the names of tensors that are not exchanged after all.

    Until :meth:`close`, or the end of a ``with`` block, it stays open and holds its tensors, also where nothing refers
    to it any more; the end of the program closes it.

    Raises:
        ConfigurationError: an argument has a value that cannot be used.
        OutOfMemoryError: a GPU, or the host's pinned memory, has no room for the buffers of messages.
        MismatchError: the ranks disagree about what they exchange.
        LaunchError: the processes were not started as one MPI job.

    >>> import numpy as np
    >>> from pushsum_opt import PushSum, testing
    >>> def average(comm):
    ...     z = np.array([float(comm.rank)])
    ...     with PushSum([z], comm=comm) as push_sum:
    ...         for _ in range(2):
    ...             push_sum.mix()
    ...     return z.item()
    >>> testing.run(4, average)
    [1.5, 1.5, 1.5, 1.5]
    """

    def __init__(
        self,
        tensors: Sequence[Any] | Mapping[str, Any],
        *,
        graph: GraphLike | None = None,
        staleness: Staleness = 0,
        data_weight: float = 1.0,
        wire_dtype: DType | None = None,
        nonfinite: Nonfinite = "raise",
        comm: Communicator | None = None,
        timeout: float = 1800.0,
        rate_correction: bool = False,
        host: Participant | None = None,
        owner: Any = None,
        by_element: Collection[str] = (),
        alike: Mapping[str, str] | None = None,
        leave_out: Callable[[Iterable[Channel]], Collection[str]] | None = None,
    ) -> None:
        comm = world.communicator(comm)
        ending.stop_all_on_error()
        transports.check(comm)
        opening.check_arguments(staleness, data_weight, nonfinite, timeout)
        combinations.refuse(comm, staleness=staleness, rate_correction=rate_correction)
        names, values = opening.named(tensors)
        self.host = host = Participant(comm) if host is None else host
        """This rank, or the ranks of its host, as one participant."""
        self.rank: int = host.rank
        """This rank, among all of the job."""
        self.size: int = host.size
        """The number of ranks of the job."""
        self.first = self.rank == 0
        """Whether this is the one rank of the job that speaks for all."""
        self._staleness = staleness
        self._nonfinite = nonfinite
        self.timeout = timeout
        self.memory = memories.bind(
            values,
            names,
            wire_dtype,
            settings.read().chunk_bytes,
            direct=lambda: cuda_aware.takes_device_memory(comm),
            lane=host.part,
            who=f"rank {self.rank}",
            by_element=by_element,
        )
        self.graph: graphs.Graph = graphs.resolve(graph, comm.Get_size(), warn=self.first)
        self.memory.whose = f"rank {self.rank}: "
        self._statistics = Statistics()
        self.listeners = Events()
        """Who follows what this rank does; other channels of this rank report their waits here too."""
        self.listeners.subscribe(self._statistics)
        host.subscribe(self.listeners)
        self._events = opening.events(host, self.listeners, staleness)
        with calling("PushSum(...)"):
            self.transport = transports.connect(
                comm,
                background=staleness != 0,
                memory=self.memory,
                timeout=timeout,
                ranks=host.gossip_ranks,
                report=by_communicator.report(host.comm),
            )
        self.channel = Channel(self.transport, self._events, timeout)
        """Over all participants of the gossip."""
        self.channels = (self.channel, *host.channels)
        """What goes over these, one after the other, reaches every rank of the job."""
        self.participant = self.channel.rank
        """The number of this rank in the gossip; where a host is one participant, of its host."""
        self.participants = self.channel.size
        """How many take part in the gossip: the n of the graph, and of the mass."""
        self.process = transports.process(comm)
        self._owner = None if owner is None else weakref.ref(owner)
        self._held: list[Any] = values
        self._restores = False
        self._before_close: list[Callable[[], None]] = []
        self.moments: Callable[[], frozenset[int]] = frozenset
        """Gives the identities of tensors that travel and are no parameters, but averages of gradients."""
        partners = self.graph.partners(self.participant, self.participants)
        self._lifetime = Lifetime(self.channel, partners, host)
        self._first_step: FirstStep | None = None
        self.mass = Mass.begin(1.0)
        """w, a and k of this rank."""
        with self.failing_together(), calling("PushSum(...)"):
            if alike is not None:
                for channel in (self.channel, *host.replicas):
                    agree(channel, alike)
            if leave_out is not None:
                self.memory.leave_out(leave_out(self.channels))
                self._held = list(self.memory.tensors.values())
            self._agree(opening.versions())
            self.mass = Mass.begin(normalised_data_weight(self.channel, float(data_weight)))
            self.run, self.name = opening.name_the_run(self.channel, host)
            succession.close_what_is_over(self, values)
        self._given_data_weight = float(data_weight) * host.share
        self._merger = Merger(
            self.memory, self._events, self.participant, nonfinite, self._greet, self.transport.job_rank
        )
        exchange = Exchange(self.memory, self.channel, self.graph, self._events, self._merger, self.mass.initial)
        try:
            with self.failing_together(), calling("PushSum(...)"):
                self.gossip = opening.make_gossip(exchange, staleness, self._signature, rate_correction=rate_correction)
        except BaseException:
            self.give_up()
            raise
        self.process.register(self)

    def _agree(self, versions: Mapping[str, str] | None = None) -> None:
        """Collective. Make sure that all ranks exchange the same things in the same way."""
        mine = opening.fingerprint(self.memory, self.graph, self.participants, self._staleness, self._nonfinite)
        agree(self.channel, mine, versions)
        for channel in self.host.replicas:
            agree(channel, mine)

    @staticmethod
    def newest(comm: Any) -> PushSum | None:
        """Return the open PushSum that was made last on a communicator, if any."""
        return next(reversed(PushSum.all_on(comm)), None)

    @staticmethod
    def all_on(comm: Any) -> list[PushSum]:
        """Return the open ones on a communicator, in the order in which they were made."""
        return [one for one in transports.process(comm).members if one.comm == comm]

    # ------------------------------------------------------------------ state

    @property
    def push_weight(self) -> float:
        """w, this rank's push weight; w > 0, and the sum over ranks of w held and in flight is n."""
        return self.mass.weight

    @property
    def data_weight(self) -> float:
        """v_i, this rank's part in the average, as it was given."""
        return self._given_data_weight

    @property
    def initial_weight(self) -> float:
        """a_i = n v_i / sum v: the push weight at the start, 1 where all data weights are equal."""
        return self.mass.initial

    @property
    def round(self) -> int:
        """k, the number of rounds completed."""
        return self.mass.round

    @property
    def staleness(self) -> int | str:
        """Rounds between posting a message and merging it."""
        return self._staleness

    @property
    def comm(self) -> Any:
        """The communicator of all ranks of the job."""
        return self.host.comm

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._lifetime.closed

    @property
    def failed(self) -> bool:
        """Whether an error has ended the exchange."""
        return self._lifetime.failure is not None

    @property
    def owned(self) -> bool:
        """Whether a wrapper was made around this."""
        return self._owner is not None

    @property
    def dropped(self) -> bool:
        """Whether the wrapper around this is gone on this rank. It may live on others: never act on it alone."""
        return self._owner is not None and self._owner() is None

    @property
    def tensor_ids(self) -> frozenset[int]:
        """The identities of the tensors that are exchanged; none once closed."""
        return frozenset(id(tensor) for tensor in self._held)

    def stats(self) -> dict[str, float]:
        """Return plain floats to log. Local and cheap.

        ``round``, ``push_weight``, ``seconds_waited`` (in all), ``bytes_sent`` (in all), ``worst_age`` (rounds since
        the last message of the in-peer not heard from for longest), ``chunks_skipped`` (not finite), ``in_flight``
        (messages), ``extra_bytes`` (held beside the tensors).
        """
        return {
            "round": float(self.round),
            "push_weight": self.push_weight,
            **self._statistics.values(self.round),
            "in_flight": float(sum(1 for _ in self.gossip.in_flight())),
            "extra_bytes": float(self.memory.extra_bytes + self.gossip.extra_bytes()),
        }

    def bytes_per_round(self) -> float:
        """Bytes that this rank sends in a round, the mean over a period of the graph."""
        rounds = range(self.graph.window(self.participants))
        messages = sum(len(self.graph.out_peers(self.participant, self.participants, k)) for k in rounds)
        return messages / len(rounds) * (HEADER_BYTES + self.memory.nbytes)

    def subscribe(self, listener: Listener) -> None:
        """Attach a :class:`~pushsum_opt.Listener` to the named points of every round, and to all waits of this rank.

        Waits are those of rounds and of every collective call on the same communicator: ``ps.average()`` and the like,
        what ranks of a host do together, and the votes of a :class:`~pushsum_opt.checkpoint.Saver`.
        """
        self.listeners.subscribe(listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Detach a listener."""
        self.listeners.unsubscribe(listener)

    # ------------------------------------------------------------------ the algorithm

    def mix(self) -> None:
        """Gossip once: give shares away, merge what is due, k <- k + 1.

        Raises:
            PeerTimeout: an in-peer sent nothing within ``timeout`` seconds.
            PeerFinished: an in-peer or out-peer has finished.
            PeerFailed: another rank stopped with an error.
            NonFiniteError: a message holds inf or nan and ``nonfinite="raise"``.
            MismatchError: a peer's parameters, or its count of rounds, differ.
            ClosedError: after :meth:`close`, or after any of these errors.
        """
        self._before_round("mix()")
        with self.failing_together(MERGING), calling("mix()"):
            # Listeners too fail together: a rank that left a round half-way would be out of step.
            self._events.round_begins(self.round)
            self.channel.begin_round(self.round)
            weight = self.gossip.round(self.round, self.push_weight)
            self.put_together()
            self._end_round(weight)

    def _before_round(self, call: str) -> None:
        self.refuse_if_on_loan(call)
        if self._first_step is not None:
            self._first_step.taken()

    def _end_round(self, weight: float) -> None:
        self._events.round_ends(self.round, weight)
        self.mass = self.mass.after_round(weight)

    def average(self) -> None:
        """Collective. In place of a round: give every rank the exact average sum_i x_i / n, and w = a_i; k <- k + 1.

        It costs an all-reduce of the tensors in float64, and waits for every rank; what is in flight is merged before.
        While it lasts, a copy of the tensors is held: where it ends by an error or an interrupt, they are put back.

        Raises:
            As :meth:`mix` does.
        """
        call = "an exact average"
        self._before_round(call)
        with self.collective(call), self._all_or_nothing():
            self._events.round_begins(self.round)
            held = self.gossip.drain(self.round, self.push_weight, call)
            for chunk, mean in exact_average(self.channel, self.memory, held, (), call, self.round):
                self._take_average(chunk, mean)
            self.put_together()
            self.channel.begin_round(self.round)  # only now: nothing was posted for those who wait for its messages
            self._end_round(self.initial_weight)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Put the tensors back where what is done to them inside ends early, by an error or an interrupt."""
        memory, mass = self.memory, self.mass
        memory.refresh()
        kept = [(chunk, memory.raw(chunk)) for chunk in memory.chunks]
        residuals = memory.residual_state()
        try:
            yield
        except BaseException:
            if self.mass is mass:
                with held_back():
                    for chunk, flat in kept:
                        memory.put_raw(chunk, flat)
                    memory.load_residual_state(residuals)
            raise

    def put_together(self) -> None:
        """Collective over a host. Give its ranks the same parameters again; nothing to do for a rank alone."""
        self.host.put_together(self.memory, self.round)
        self._events.release()

    def _take_average(self, chunk: Chunk, values: Any) -> None:
        if chunk.by_element or np.isfinite(values).all():
            self.memory.settle(chunk, values, self.initial_weight)
        elif self._nonfinite == "skip":
            self._events.chunk_skipped(self.round, self.participant, self.memory.describe(chunk))
        else:
            raise NonFiniteError(
                f"rank {self.rank}: the exact average of round {self.round} holds inf or nan in "
                f"{self.memory.name_nonfinite(chunk, values)}: some rank's parameters have diverged. Look at losses "
                "and gradients (learning rate, loss scaling). nonfinite='skip' leaves such parts as they are on each "
                "rank"
            )

    def step_factor(self, scale: float = 1.0) -> float:
        """Return what a local step dz must be multiplied by so that x moves by a_i dz, as in the paper: a_i / w.

        Exactly 1 where that is all but 1.

        Args:
            scale: a further factor of the step.
        """
        self.refuse_if_on_loan("a step")
        return self.mass.step_factor(scale * self.gossip.step_scale())

    @contextmanager
    def local_step(self, scale: float = 1.0) -> Iterator[None]:
        """Scale what happens to the tensors inside by :meth:`step_factor`.

        Where that is 1 there is nothing to do; otherwise it costs one copy of the tensors.
        """
        factor = self.step_factor(scale)
        if factor == 1.0:
            yield
            return
        self.memory.refresh()
        self.memory.snapshot()
        yield
        self.memory.scale_step(self.push_weight, factor * self.push_weight)

    def drain(self, *, call: str = "drain()") -> None:
        """Collective. Wait for and merge every message in flight. When synchronous, all that it does is meet."""
        self.refuse_if_on_loan(call)
        self.refuse_out_of_step(call)
        with self.collective(call, MERGING):
            self._drain_in_flight(call)
            self.put_together()

    def _drain_in_flight(self, call: str) -> None:
        self.mass = self.mass.with_weight(self.gossip.drain(self.round, self.push_weight, call))

    def settle(self, call: str) -> None:
        """Collective. Wait until every message in flight has come, so that it can be counted without merging it."""
        self.refuse_out_of_step(call)
        with self.collective(call, MERGING if self._staleness == "unbounded" else WHOLE):
            self.mass = self.mass.with_weight(self.gossip.settle(self.round, self.push_weight, call))

    def meet(self, call: str) -> None:
        """Collective. Make sure that every rank makes this call now, and no other."""
        self.refuse_out_of_step(call)
        with self.collective(call):
            self.gossip.meet(self.round, call)

    def extend(self, tensors: Mapping[str, Any], *, call: str, by_element: Collection[str] = ()) -> None:
        """Collective. Exchange more tensors from the next round on, beside those that are there.

        Args:
            by_element: names of those that are merged element by element.
            call: the name of the call that all ranks make together.
        """
        self.drain(call=call)
        with self.collective(call, JOINING):
            self.memory.extend(list(tensors.values()), list(tensors), by_element)
            self._held = [*self._held, *tensors.values()]
            self._agree()
            self.gossip.reserve()

    def replace(self, name: str, tensor: Any) -> None:
        """Exchange another tensor, of the same shape and dtype, in the place of one; what it holds is kept. Local."""
        old = self.memory.tensors[name]
        self.memory.replace(name, tensor)
        self._held = [tensor if one is old else one for one in self._held]

    # ------------------------------------------------------------------ saving and loading

    def state(self) -> dict[str, Any]:
        """Return what belongs to this rank, tensors as copies. Local, without side effects.

        ``rank`` and ``size`` count participants; ``data_weight`` is a_i, the :attr:`initial_weight`.

        ``run``, ``rank``, ``size``, ``round``, ``push_weight``, ``data_weight``, ``residuals``, and
        ``in_flight``: what is awaited, with the messages that have come and are not due.
        """
        return saving.state(self)

    def load_state(self, state: Mapping[str, Any] | None) -> str | None:
        """Continue from what :meth:`state` returned. Local.

        The round is taken over, and the mass starts anew at w = a_i: then it sums to n whatever the other ranks load,
        be it their own files or all of them rank 0's. Nothing is lost by that where this rank's own state has w = a_i
        and nothing in flight, as between the rounds of a synchronous run on a doubly stochastic graph: such a state
        continues bit for bit. Inside :meth:`restoring`, every state does.

        Returns:
            None; or, where something of the state is not taken over, why.
        """
        self.refuse_if_closed()
        if state is not None and self._restores:
            saving.load_exactly(self, state)
            return None
        return saving.load_or_restart(self, state)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Inside, :meth:`load_state` restores push weight, residuals and messages in flight as they were.

        For whoever has made sure that every rank loads its own part of one state of all ranks, so that the mass sums to
        n; and that nothing is in flight (:meth:`drain`).
        """
        self._restores = True
        try:
            yield
        finally:
            self._restores = False

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Collective. Bring every message home, wait for all ranks, and free what is held. Idempotent.

        After an error it returns at once: the other ranks have been told. In a forked child it does nothing.
        """
        self._close(self._bring_home)

    def _close(self, bring_home: Callable[[], None]) -> None:
        member = self._lifetime
        if member.closed or member.forked:
            return
        try:
            if member.failure is None:
                for callback in self._before_close:
                    callback()
                with self.collective("close()", MERGING):
                    member.leave(self.round, bring_home)
        finally:
            member.closed = True
            self._held = []
            if member.failure is None:
                self.gossip.close()
            self.transport.close()
            self.host.close(cleanly=member.failure is None)
            if member.failure is None:
                self.memory.close()

    def close_unchanged(self) -> None:
        """Collective. Close, and leave the tensors as they are: what is in flight is given up, with its mass."""
        self._lifetime.successor = True
        self._close(lambda: self._bring_home(unchanged=True))

    def give_up(self) -> None:
        """Free threads and the transport, without the other ranks: for the end of a run in one process."""
        self._lifetime.closed = True
        self.transport.close()
        self.host.close(cleanly=False)

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks that this one cannot go on, and why."""
        self._lifetime.fail(error, self.round)

    def _bring_home(self, *, unchanged: bool = False) -> None:
        kept = []
        # A model that was converted is not merged into in any case.
        if unchanged and (self._staleness != 0 or self.host.lanes > 1) and self.memory.keeps_its_form():
            self.memory.refresh()
            kept = [(chunk, self.memory.raw(chunk)) for chunk in self.memory.chunks]
        try:
            self._drain_in_flight("close()")
            self.put_together()
        finally:
            with held_back():
                for chunk, flat in kept:
                    self.memory.put_raw(chunk, flat)

    def around_merges(self, context: Callable[[int], AbstractContextManager[None]]) -> None:
        """Have late messages merged inside a context, made from the round in which they were sent.

        For tensors that change in a known way while they are in flight. Called when messages outlive their round only.
        """
        self._merger.around = context

    def before_close(self, callback: Callable[[], None]) -> None:
        """Have something done first when this is closed; all ranks must close together what they made together."""
        self._before_close.append(callback)

    def __enter__(self) -> PushSum:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._lifetime.fail(error, self.round)
        self.close()

    def __repr__(self) -> str:
        return (
            f"PushSum(rank={self.rank}, size={self.size}, graph={self.graph!r}, staleness={self._staleness!r}, "
            f"round={self.round}, push_weight={self.push_weight:.6g})"
        )

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
        self._events.call_begins(call, round)
        try:
            yield
        finally:
            self._events.call_ends(call, round)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Tell listeners when a local step begins and ends."""
        round = self.round
        self._events.local_step_begins(round)
        try:
            yield
        finally:
            self._events.local_step_ends(round)

    def failing_together(self, left: str = WHOLE) -> AbstractContextManager[None]:
        """Return a context that tells the other ranks when this one fails in it, and refuses to go on afterwards.

        Args:
            left: what an interrupt inside leaves of the tensors.
        """
        return self._lifetime.failing_together(self.round, left)

    def ending_together(self) -> AbstractContextManager[None]:
        """Return a context as :meth:`failing_together`, for interrupts only: all ranks have the same errors."""
        return self._lifetime.failing_together(self.round, only_interrupts=True)

    def refuse_if_closed(self) -> None:
        """Raise ClosedError after :meth:`close`, or after an error."""
        self._lifetime.refuse_if_over(self.round)

    def refuse_out_of_step(self, call: str) -> None:
        """Raise CallOrderError inside join()."""
        self._lifetime.refuse_out_of_step(call, self.round)

    def refuse_if_on_loan(self, call: str) -> None:
        """Raise CallOrderError inside averaged()."""
        self._lifetime.refuse_if_on_loan(call, self.round)

    @property
    def on_loan(self) -> str | None:
        """The block in which the tensors hold other values for a while, such as "averaged()"; None outside of one."""
        return self._lifetime.on_loan

    @property
    def out_of_step(self) -> str | None:
        """The block in which ranks take different numbers of steps, such as "join()"; None outside of one."""
        return self._lifetime.out_of_step

    def lent(self, block: str) -> AbstractContextManager[None]:
        """Return a context in which the tensors hold other values: rounds and steps are refused."""
        return self._lifetime.lent(block)

    def apart(self, block: str) -> AbstractContextManager[None]:
        """Return a context in which ranks take different numbers of steps: collective calls are refused."""
        return self._lifetime.apart(block)

    # ------------------------------------------------------------------ what ranks know of each other

    def watch_first_step(self, alike: Callable[[int], None]) -> FirstStep:
        """Compare this rank's first local step with its in-peers'; ``alike(peer)`` is called where they are equal."""
        self._first_step = FirstStep(self.memory, alike)
        return self._first_step

    def _signature(self) -> bytes:
        return self._first_step.signature if self._first_step is not None and self.round == 0 else NOTHING

    def _greet(self, peer: int, header: Header) -> None:
        if self._first_step is not None:
            self._first_step.compare(peer, header.signature)
