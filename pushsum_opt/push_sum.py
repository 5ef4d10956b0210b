"""The heart: (z, w) of one rank, and the rounds that mix them.

Push-sum (Kempe, Dobra and Gehrke 2003; Assran et al. 2019, Algorithm 1) in de-biased form: the tensors always hold the
estimate z, the push weight w is one float64, and the numerator x = w z is implied.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from . import agreement, cuda_aware, ending, graphs, settings, succession, world
from . import memory as memories
from . import transport as transports
from .arguments import Communicator, DType, GraphLike, Nonfinite, Staleness
from .errors import CallOrderError, ConfigurationError, NonFiniteError
from .events import Events, Listener
from .gossip.asynchronous import AsynchronousGossip
from .gossip.merging import Merger
from .gossip.overlapped import OverlappedGossip
from .gossip.pace import Pace
from .gossip.protocol import Exchange, Gossip
from .gossip.synchronous import SynchronousGossip
from .gossip.wire import HEADER_BYTES, VERSION, Header
from .hosts import Hosts
from .membership import Membership
from .memory import Chunk
from .observe.advice import OverlapAdvice
from .observe.first_step import NOTHING, FirstStep
from .observe.stall import StallInspector
from .observe.statistics import Statistics
from .transport.calls import calling, current_call
from .transport.waiting import Waiter

__all__ = ["PushSum"]

EXACT = 1e-12  # |w / a - 1| below this: the local step needs no scaling


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
        hosts: where several ranks of a host are one participant; ``comm`` is ``hosts.lane_comm`` then.
        owner: the wrapper around this. Once it is dropped on every rank, the next construction closes what it owned.

    Until :meth:`close`, or the end of a ``with`` block, it stays open and holds its tensors, also where nothing refers
    to it any more; the end of the program closes it.

    Raises:
        ConfigurationError: an argument has a value that cannot be used.
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
        hosts: Hosts | None = None,
        owner: Any = None,
    ) -> None:
        comm = world.communicator(comm)
        ending.stop_all_on_error()
        machine = settings.read()
        transports.check(comm)
        if isinstance(tensors, Mapping):
            names, values = list(tensors), list(tensors.values())
        else:
            values = list(tensors)
            names = [f"tensor {index}" for index in range(len(values))]
        _check_arguments(staleness, rate_correction, data_weight, nonfinite, timeout)
        self.memory = memories.bind(
            values,
            names,
            wire_dtype,
            machine.chunk_bytes,
            direct=lambda: cuda_aware.takes_device_memory(comm),
            lane=(0, 1) if hosts is None else hosts.part,
        )
        self.hosts = hosts
        self.graph: graphs.Graph = graphs.resolve(graph, comm.Get_size(), warn=self._is_first(comm.Get_rank()))
        with calling("PushSum(...)"):
            self.transport = transports.connect(
                comm,
                background=staleness != 0,
                memory=self.memory,
                timeout=timeout,
                ranks=None if hosts is None else hosts.lane_ranks,
            )
        self._comm = comm if hosts is None else hosts.comm
        self.process = transports.process(comm)
        self._owner = None if owner is None else weakref.ref(owner)
        self._held: list[Any] = values
        self.rank: int = self.transport.job_rank()
        """This rank, among all of the communicator that was given."""
        self.size: int = self.transport.size if hosts is None else hosts.size
        """The number of its ranks."""
        self.participant = self.transport.rank
        """The number of this rank in the gossip; with ``hosts``, of its host."""
        self.participants = self.transport.size
        """How many take part in the gossip: the n of the graph, and of the mass."""
        self._statistics = Statistics()
        self.listeners = Events()
        """Who follows what this rank does; other channels of this rank report their waits here too."""
        self.listeners.subscribe(self._statistics)
        self._events = Events(self.transport.job_rank)
        self._events.subscribe(self.listeners)
        self._events.subscribe(StallInspector(self.rank))
        if staleness == 0 and self.first and self.participants > 1:
            self._events.subscribe(OverlapAdvice())
        if hosts is not None:
            hosts.events.subscribe(self.listeners)
        self.timeout = timeout
        self.waiter = Waiter(self.transport, self._events, timeout, machine.stall_seconds)
        self._staleness = staleness
        self._nonfinite = nonfinite
        self._round = 0
        self._restores = False
        self._before_close: list[Callable[[], None]] = []
        self.on_loan: str | None = None
        """Who holds other values in the tensors for a while, if anybody: rounds and steps are refused meanwhile."""
        self.out_of_step: str | None = None
        """Who lets ranks take different numbers of steps for a while, if anybody: collective calls are refused then."""
        partners = self.graph.partners(self.participant, self.participants)
        self._membership = Membership(self.transport, self.waiter, partners, hosts)
        self._first_step: FirstStep | None = None
        with self.failing_together(), calling("PushSum(...)"):
            agreement.agree(self.transport, self.waiter, self._fingerprint(), _versions(values))
            if hosts is not None and not hosts.sharded:
                agreement.agree(hosts.transport, hosts.waiter, self._fingerprint(), {})
            self._initial_weight = agreement.normalised_data_weight(self.transport, self.waiter, float(data_weight))
            self.run = agreement.shared_run(self.transport, self.waiter, os.urandom(8))
            self.name = self.run
            if hosts is not None:
                self.name = agreement.shared_run(hosts.transport, hosts.waiter, bytes.fromhex(self.run))
            succession.close_what_is_over(self, values)
        self._given_data_weight = float(data_weight) * (1.0 if hosts is None else hosts.share)
        self._weight = self._initial_weight
        name = self.transport.job_rank
        merger = Merger(self.memory, self._events, self.participant, nonfinite, self._greet, name)
        exchange = Exchange(
            self.memory, self.transport, self.graph, self.waiter, self._events, merger, self._initial_weight
        )
        self.gossip = self._make_gossip(exchange, rate_correction)
        self.process.register(self)

    def _is_first(self, rank: int) -> bool:
        return rank == 0 and (self.hosts is None or self.hosts.lane == 0)

    @property
    def first(self) -> bool:
        """Whether this is the one rank of the job that speaks for all."""
        return self._is_first(self.participant)

    @staticmethod
    def newest(comm: Any) -> PushSum | None:
        """Return the open PushSum that was made last on a communicator, if any."""
        return next(reversed(PushSum.all_on(comm)), None)

    @staticmethod
    def all_on(comm: Any) -> list[PushSum]:
        """Return the open ones on a communicator, in the order in which they were made."""
        return [one for one in transports.process(comm).members if one._comm == comm]

    def _make_gossip(self, exchange: Exchange, rate_correction: bool) -> Gossip:
        if self._staleness == 0:
            return SynchronousGossip(exchange, self._signature)
        if isinstance(self._staleness, int):
            return OverlappedGossip(exchange, self._staleness, self._signature)
        return AsynchronousGossip(exchange, self._signature, Pace() if rate_correction else None)

    # ------------------------------------------------------------------ state

    @property
    def push_weight(self) -> float:
        """w, this rank's push weight; w > 0, and the sum over ranks of w held and in flight is n."""
        return self._weight

    @property
    def data_weight(self) -> float:
        """v_i, this rank's part in the average, as it was given."""
        return self._given_data_weight

    @property
    def initial_weight(self) -> float:
        """a_i = n v_i / sum v: the push weight at the start, 1 where all data weights are equal."""
        return self._initial_weight

    @property
    def round(self) -> int:
        """k, the number of rounds completed."""
        return self._round

    @property
    def staleness(self) -> int | str:
        """Rounds between posting a message and merging it."""
        return self._staleness

    @property
    def comm(self) -> Any:
        """The communicator of all ranks of the job."""
        return self._comm

    @property
    def closed(self) -> bool:
        return self._membership.closed

    @property
    def failed(self) -> bool:
        """Whether an error has ended the exchange."""
        return self._membership.failure is not None

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

    @property
    def ranks(self) -> int:
        """How many ranks of the job exchange here."""
        return int(self._comm.Get_size())

    def stats(self) -> dict[str, float]:
        """Return plain floats to log. Local and cheap.

        ``round``, ``push_weight``, ``seconds_waited`` (in all), ``bytes_sent`` (in all), ``worst_age`` (rounds since
        the last message of the in-peer not heard from for longest), ``chunks_skipped`` (not finite), ``in_flight``
        (messages), ``extra_bytes`` (held beside the tensors).
        """
        return {
            "round": float(self._round),
            "push_weight": self._weight,
            **self._statistics.values(self._round),
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
        self.refuse_if_on_loan("mix()")
        if self._first_step is not None:
            self._first_step.taken()
        self._events.round_begins(self._round)
        self.waiter.begin_round(self._round)
        with self.failing_together(), calling("mix()"):
            self._weight = self.gossip.round(self._round, self._weight)
            self.put_together()
        self._events.round_ends(self._round, self._weight)
        self._round += 1

    def average(self) -> None:
        """Collective. In place of a round: give every rank the exact average sum_i x_i / n, and w = a_i; k <- k + 1.

        It costs an all-reduce of the tensors in float64, and waits for every rank; what is in flight is merged before.

        Raises:
            As :meth:`mix` does.
        """
        self.refuse_if_on_loan("an exact average")
        if self._first_step is not None:
            self._first_step.taken()
        self._events.round_begins(self._round)
        with self.failing_together(), calling("an exact average"):
            held = self.gossip.drain(self._round, self._weight, "an exact average")
            self.memory.refresh()
            weight = np.array([held])
            self.waiter.wait((self.transport.sum(weight, "an exact average"),), self._round)
            for chunk in self.memory.exchanged:
                total = self.memory.numerator(chunk, held)
                self.waiter.wait((self.transport.sum(total, "an exact average"),), self._round)
                self._take_average(chunk, total / weight[0])
            self._weight = self._initial_weight
            self.put_together()
        self.waiter.begin_round(self._round)  # only now: nothing was posted for those who wait for its messages
        self._events.round_ends(self._round, self._weight)
        self._round += 1

    def put_together(self) -> None:
        """Give the ranks of a host the same parameters again; without ``hosts`` there is nothing to do."""
        if self.hosts is not None:
            self.hosts.put_together(self.memory, self._round)

    def _take_average(self, chunk: Chunk, values: Any) -> None:
        if np.isfinite(values).all():
            self.memory.settle(chunk, values, self._initial_weight)
        elif self._nonfinite == "skip":
            self._events.chunk_skipped(self._round, self.participant, self.memory.describe(chunk))
        else:
            raise NonFiniteError(
                f"rank {self.rank}: the exact average of round {self._round} holds inf or nan in "
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
        factor = self._initial_weight * self.gossip.step_scale() * scale / self._weight
        return 1.0 if abs(factor - 1.0) < EXACT else factor

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
        self.memory.scale_step(self._weight, factor * self._weight)

    def drain(self, *, call: str = "drain()") -> None:
        """Collective. Wait for and merge every message in flight. When synchronous, all that it does is meet."""
        self.refuse_if_on_loan(call)
        self._refuse_out_of_step(call)
        with self.failing_together(), calling(call):
            self._weight = self.gossip.drain(self._round, self._weight, call)
            self.put_together()

    def settle(self, call: str) -> None:
        """Collective. Wait until every message in flight has come, so that it can be counted without merging it."""
        self._refuse_out_of_step(call)
        with self.failing_together(), calling(call):
            self._weight = self.gossip.settle(self._round, self._weight, call)

    def meet(self, call: str) -> None:
        """Collective. Make sure that every rank makes this call now, and no other."""
        self._refuse_out_of_step(call)
        with self.failing_together(), calling(call):
            self.gossip.meet(self._round, call)

    def extend(self, tensors: Mapping[str, Any], *, call: str) -> None:
        """Collective. Exchange more tensors from the next round on, beside those that are there.

        Args:
            call: the name of the call that all ranks make together.
        """
        self.drain(call=call)
        with self.failing_together(), calling(call):
            self.memory.extend(list(tensors.values()), list(tensors))
            self._held = [*self._held, *tensors.values()]
            agreement.agree(self.transport, self.waiter, self._fingerprint(), {})
            if self.hosts is not None and not self.hosts.sharded:
                agreement.agree(self.hosts.transport, self.hosts.waiter, self._fingerprint(), {})

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
        return {
            "run": self.run,
            "rank": self.participant,
            "size": self.participants,
            "round": self._round,
            "push_weight": self._weight,
            "data_weight": self._initial_weight,
            "residuals": self.memory.residual_state(),
            "in_flight": self.gossip.state(),
        }

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
            self._restore(state)
            return None
        self.gossip.forget()
        self.memory.load_residual_state({})
        self._weight = self._initial_weight
        if state is None:
            return "it has no push-sum state (saved without pushsum_opt?)"
        self._round = int(state["round"])
        if (state["rank"], state["size"]) != (self.participant, self.participants):
            kind = "rank" if self.hosts is None else "host"
            saved = f"{kind} {state['rank']} of {state['size']}"
            return f"it was saved by {saved}, and this is {kind} {self.participant} of {self.participants}"
        weight = float(state["push_weight"])
        away = sum(len(item["messages"]) + item["missing"] for item in state["in_flight"])
        if away or abs(weight / self._initial_weight - 1.0) >= EXACT:
            # One rank cannot know whether the others load the rest of this run's mass, or all of them this very file.
            return f"it had push weight {weight:.6g} and {away} messages in flight to it when it was saved"
        self._weight = weight
        self.memory.load_residual_state(state["residuals"])
        return None

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

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.memory.refresh()
        self._round = int(state["round"])
        self.memory.load_residual_state(state["residuals"])
        self._weight = self.gossip.load_state(state["in_flight"], float(state["push_weight"]))

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Collective. Bring every message home, wait for all ranks, and free what is held. Idempotent.

        After an error it returns at once: the other ranks have been told. In a forked child it does nothing.
        """
        self._close(self._bring_home)

    def _close(self, bring_home: Callable[[], None]) -> None:
        member = self._membership
        if member.closed or member.forked:
            return
        try:
            if member.failure is None:
                for callback in self._before_close:
                    callback()
                with self.failing_together(), calling("close()"):
                    member.leave(self._round, bring_home)
        finally:
            member.closed = True
            self._held = []
            if member.failure is None:
                self.gossip.close()
            self.transport.close()
            if self.hosts is not None:
                self.hosts.close(cleanly=member.failure is None)
            if member.failure is None:
                self.memory.close()

    def close_unchanged(self) -> None:
        """Collective. Close, and leave the tensors as they are: what is in flight is given up, with its mass."""
        self._membership.successor = True
        self._close(lambda: self._bring_home(unchanged=True))

    def give_up(self) -> None:
        """Free threads and the transport, without the other ranks: for the end of a run in one process."""
        self._membership.closed = True
        self.transport.close()
        if self.hosts is not None:
            self.hosts.close(cleanly=False)

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks that this one cannot go on, and why."""
        self._membership.fail(error, self._round)

    def _bring_home(self, *, unchanged: bool = False) -> None:
        kept = []
        if unchanged and (self._staleness != 0 or self.hosts is not None):
            self.memory.refresh()
            kept = [(chunk, self.memory.raw(chunk)) for chunk in self.memory.chunks]
        try:
            self._weight = self.gossip.drain(self._round, self._weight, "close()")
            self.put_together()
        finally:
            for chunk, flat in kept:
                self.memory.put_raw(chunk, flat)

    def before_close(self, callback: Callable[[], None]) -> None:
        """Have something done first when this is closed; all ranks must close together what they made together."""
        self._before_close.append(callback)

    def __enter__(self) -> PushSum:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._membership.fail(error, self._round)
        self.close()

    def __repr__(self) -> str:
        return (
            f"PushSum(rank={self.rank}, size={self.size}, graph={self.graph!r}, staleness={self._staleness!r}, "
            f"round={self._round}, push_weight={self._weight:.6g})"
        )

    def failing_together(self) -> AbstractContextManager[None]:
        """Return a context that tells the other ranks when this one fails in it, and refuses to go on afterwards."""
        return self._membership.failing_together(self._round)

    def refuse_if_closed(self) -> None:
        """Raise ClosedError after :meth:`close`, or after an error."""
        self._membership.refuse_if_over(self._round)

    def _refuse_out_of_step(self, call: str) -> None:
        self.refuse_if_closed()
        if self.out_of_step is not None:
            raise CallOrderError(
                f"rank {self.rank}, round {self._round}: {call} inside {self.out_of_step}: a collective call, and "
                "ranks are in different steps there. Make it after the block, on every rank"
            )

    def refuse_if_on_loan(self, call: str) -> None:
        """Raise CallOrderError inside averaged()."""
        self.refuse_if_closed()
        if self.on_loan is not None:
            raise CallOrderError(
                f"rank {self.rank}, round {self._round}: {current_call(call)} inside {self.on_loan}: the tensors hold "
                "the average over ranks there, and what is done to them is undone at its end. Leave the block first"
            )

    # ------------------------------------------------------------------ what ranks know of each other

    def _fingerprint(self) -> dict[str, str]:
        described = self.memory.described()
        return {
            "the number of tensors": str(len(described)),
            **described,
            "graph": f"{self.graph!r} ({self.graph.fingerprint(self.participants)[:12]})",
            "staleness": repr(self._staleness),
            "nonfinite": repr(self._nonfinite),
            "the size of chunks (PUSHSUM_CHUNK_BYTES)": str(self.memory.chunk_bytes),
            "the layout of messages": self.memory.layout.hex(),
            "the version of the wire": str(VERSION),
        }

    def watch_first_step(self, alike: Callable[[int], None]) -> FirstStep:
        """Compare this rank's first local step with its in-peers'; ``alike(peer)`` is called where they are equal."""
        self._first_step = FirstStep(self.memory, alike)
        return self._first_step

    def _signature(self) -> bytes:
        return self._first_step.signature if self._first_step is not None and self._round == 0 else NOTHING

    def _greet(self, peer: int, header: Header) -> None:
        if self._first_step is not None:
            self._first_step.compare(peer, header.signature)


def _check_arguments(staleness: Any, rate_correction: Any, data_weight: Any, nonfinite: Any, timeout: Any) -> None:
    if isinstance(staleness, bool) or not (isinstance(staleness, int) or staleness == "unbounded"):
        raise ConfigurationError(f"staleness={staleness!r}: expected an int of at least 0, or 'unbounded'")
    if isinstance(staleness, int) and staleness < 0:
        raise ConfigurationError(f"staleness={staleness!r}: expected an int of at least 0, or 'unbounded'")
    if rate_correction and staleness != "unbounded":
        raise ConfigurationError(
            f"rate_correction=True with staleness={staleness!r}: where rounds are in step, all ranks take equally many "
            "steps; it is for staleness='unbounded'"
        )
    if isinstance(data_weight, bool) or not isinstance(data_weight, int | float | np.number):
        raise ConfigurationError(f"data_weight={data_weight!r}: expected a number above 0")
    if nonfinite not in ("raise", "skip"):
        raise ConfigurationError(f"nonfinite={nonfinite!r}: expected 'raise' or 'skip'")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ConfigurationError(f"timeout={timeout!r}: expected seconds, a finite number above 0")


def _versions(values: Sequence[Any]) -> dict[str, str]:
    import sys

    torch = sys.modules.get("torch")
    return {
        "numpy": np.__version__,
        "torch": str(torch.__version__) if torch is not None else "not loaded",
    }

