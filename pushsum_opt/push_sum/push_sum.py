"""PushSum: what a user calls. Its parts, and what other rooms ask of it, are in :mod:`.member`.

Push-sum (Kempe, Dobra and Gehrke 2003; Assran et al. 2019, Algorithm 1) in de-biased form: the tensors always hold the
estimate z, the push weight w is one float64, and the numerator x = w z is implied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .. import combinations, settings, transport
from ..arguments import Communicator, DType, GraphLike, Nonfinite, OnLoss, Staleness
from ..errors import ConfigurationError
from ..faults import Loss
from ..gossip.wire import HEADER_BYTES
from ..graphs import Graph
from ..hosts import Participant
from ..job import ending, world
from ..memory import Memory
from ..observe.events import Listener
from ..observe.timeline import Timeline
from ..transport import Transport
from . import rounds, saving
from .continuing import survival_of
from .member import Member
from .options import Options, WrapperOptions

__all__ = ["PushSum", "push_sum_of"]


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
            meanwhile. "unbounded": merge what has come, and wait for no rank.
        data_weight: v_i, this rank's part in the average, such as its number of samples; > 0.
        wire_dtype: round wider values to this dtype on the wire ("bfloat16", "float16", "float32", or a dtype);
            the mean over ranks stays exact. "int8": a byte for each number, its place on a fine grid modulo 256, which
            the receiver completes from its own values; whole numbers in the first rounds. None: send as it is.
        nonfinite: "raise" when a message holds inf or nan, or "skip" that part of it.
        comm: an mpi4py communicator, a process group of torch.distributed, or what :func:`pushsum_opt.testing.run`
            gives; None for all ranks.
        timeout: seconds without progress after which waiting for a peer is an error.
        rate_correction: with ``staleness="unbounded"``, scale local steps by this rank's step time over the mean, so
            that slow ranks count as much as fast ones.
        on_loss: when ranks have died: "stop" with an error; or "continue" without them, where MPI can.
        host: where several ranks of a host are one participant; ``comm`` is ``host.gossip_comm`` then.
        wrapper: what a wrapper around this adds, such as :class:`~pushsum_opt.PushSumOptimizer`.

    It stays open, and keeps its tensors, until :meth:`close` or the end of a ``with`` block, even where nothing refers
    to it any more. The end of the program closes it.

    Raises:
        ConfigurationError: an argument has a value that cannot be used.
        OutOfMemoryError: a GPU, or the host's pinned memory, has no room for the buffers of messages.
        MismatchError: the ranks disagree about what they exchange.
        LaunchError: the processes were not started as one job.

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
        on_loss: OnLoss = "stop",
        host: Participant | None = None,
        wrapper: WrapperOptions | None = None,
    ) -> None:
        comm = world.communicator(comm)
        ending.stop_all_on_error()
        transport.check(comm)
        options = Options(staleness, data_weight, wire_dtype, nonfinite, timeout, rate_correction)
        combinations.refuse(comm, staleness=staleness, rate_correction=rate_correction)
        survival = survival_of(comm if host is None else host.comm, on_loss, timeout)

        def make() -> Member:
            now = world.communicator(comm)
            return Member(now, tensors, graph, options, Participant(now) if host is None else host, wrapper, survival)

        self.member = survival.together(make)
        """What other rooms of the library ask of it; no part of the public interface."""
        if (folder := settings.read().timeline) is not None:
            Timeline(self, folder)

    # ------------------------------------------------------------------ state

    @property
    def rank(self) -> int:
        """This rank, among all of the job."""
        return self.member.place.rank if not self.member.survival.waits else self.member.started_as

    @property
    def size(self) -> int:
        """The number of ranks of the job."""
        return self.member.place.size if not self.member.survival.waits else len(self.members)

    @property
    def participant(self) -> int:
        """The number of this rank in the gossip; where a host is one participant, of its host."""
        return self.member.place.participant

    @property
    def participants(self) -> int:
        """How many take part in the gossip: the n of the graph, and of the mass."""
        return self.member.place.participants

    @property
    def comm(self) -> Any:
        """The communicator of all ranks of the job."""
        return self.member.comm

    @property
    def graph(self) -> Graph:
        """Who sends to whom."""
        return self.member.place.graph

    @property
    def memory(self) -> Memory:
        """Where the tensors lie."""
        return self.member.memory

    @property
    def transport(self) -> Transport:
        """What carries its messages."""
        return self.member.place.transport

    @property
    def push_weight(self) -> float:
        """w, this rank's push weight; w > 0, and the sum over ranks of w held and in flight is n."""
        return self.member.mass.weight

    @property
    def data_weight(self) -> float:
        """v_i, this rank's part in the average, as it was given."""
        return self.member.data_weight

    @property
    def initial_weight(self) -> float:
        """a_i = n v_i / sum v: the push weight at the start, 1 where all data weights are equal."""
        return self.member.mass.initial

    @property
    def round(self) -> int:
        """k, the number of rounds completed."""
        return self.member.round

    @property
    def staleness(self) -> int | str:
        """Rounds between posting a message and merging it."""
        return self.member.options.staleness

    @property
    def members(self) -> tuple[int, ...]:
        """The ranks that take part, by their numbers when the job was started; :attr:`rank` is a place in it.

        A spare has the number of the rank whose place it has taken.
        """
        return self.member.survival.members_of_the_job

    @property
    def on_loss(self) -> str:
        """What is done when ranks have died: "stop" or "continue"."""
        return "continue" if self.member.survival.continues else "stop"

    @property
    def losses(self) -> list[Loss]:
        """What was lost so far, oldest first: one :class:`~pushsum_opt.Loss` for each recovery."""
        return list(self.member.survival.losses)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call a function whenever ranks were lost, or spares have taken their places, once this rank can go on; rank,
        size and members are new then.
        """
        self.member.survival.on_change.append(callback)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self.member.closed

    def stats(self) -> dict[str, float]:
        """Return plain floats to log. Local and cheap.

        ``round``, ``push_weight``, ``seconds_waited`` (in all), ``bytes_sent`` (in all), ``worst_age`` (rounds since
        the last message of the in-peer not heard from for longest), ``chunks_skipped`` (not finite), ``blocks_missed``
        (of 512 elements, too far from this rank's own; only with ``wire_dtype="int8"``), ``in_flight`` (messages),
        ``extra_bytes`` (held beside the tensors).
        """
        return {
            "round": float(self.round),
            "push_weight": self.push_weight,
            **self.member.statistics.values(self.round),
            "in_flight": float(sum(1 for _ in self.member.mode.in_flight())),
            "extra_bytes": float(self.memory.extra_bytes + self.member.mode.extra_bytes()),
        }

    def report(self, **values: Any) -> None:
        """Report numbers of this rank, such as ``report(loss=loss)``: :meth:`means` gives their means. Local.

        They ride in the headers of the messages of the rounds, so no rank waits, and no message is added. What was
        reported last counts, until something else is; a rank that has never reported a name does not count there. All
        ranks count alike, whatever their data weights. A value that is inf or nan makes the mean that, as long as it
        stands.

        Args:
            values: by names; numbers, or tensors of one element. A tensor on a GPU is waited for once per window; see
                :meth:`means`. Up to 16 names in all, the same on every rank, first used in the same order.

        Raises:
            ConfigurationError: a value is no number, there are too many names, or :meth:`means` has the name already.
            MismatchError: another rank reports other names. Where a message says so, the round raises it, and the ranks
                that have not seen that message raise PeerFailed with the same text.
        """
        self.member.lifetime.refuse_if_over()
        self.member.means.report({name: _number(self.rank, name, value) for name, value in values.items()})

    def means(self) -> dict[str, float]:
        """Return the mean over ranks of what each has reported by :meth:`report`, by name. Local.

        They are the means of values that all ranks had at one moment, from one to two *windows* ago. A window has as
        many rounds as the graph needs to bring the ranks together: log2 n on the default graph where n is a power of 2,
        with ``staleness=0``. In step on a graph that averages exactly, they are exact, and the same on every rank. On
        other graphs, and in asynchronous rounds, they come nearer to the exact mean with each window in which the
        values stand still.

        After a resume and after a loss they begin anew. An exact average (:meth:`average`) makes them exact. With
        ``within_host``, the ranks with the same number on their hosts are averaged.

        Once it was called on any rank, all ranks measure three numbers more. ``consensus_distance`` is an estimate of
        what :func:`~pushsum_opt.consensus_distance` returns, 10 to 35 % off with few ranks. A model on a
        GPU is measured there, and the round after that waits until the merges of the round before are done.
        ``mass_held`` is the sum over ranks of w, and ``mass_in_flight`` what messages hold; together they are n.

        Returns:
            An empty dict in the first window.
        """
        self.member.means.ask()
        return self.member.means.read(self.participants)

    def bytes_per_round(self) -> float:
        """Bytes that this rank sends in a round, the mean over a period of the graph."""
        period = range(self.graph.window(self.participants))
        messages = sum(len(self.graph.out_peers(self.participant, self.participants, k)) for k in period)
        return messages / len(period) * (HEADER_BYTES + self.memory.nbytes)

    def subscribe(self, listener: Listener) -> None:
        """Attach a :class:`~pushsum_opt.Listener` to the named points of every round, and to all waits of this rank.

        Waits are those of rounds and of every collective call on the same communicator: ``ps.average()`` and the like,
        what ranks of a host do together, and the votes of a :class:`~pushsum_opt.checkpoint.Saver`.
        """
        self.member.listeners.subscribe(listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Detach a listener."""
        self.member.listeners.unsubscribe(listener)

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
        rounds.mix(self.member)

    def average(self, *, narrow: bool = False) -> None:
        """Collective. In place of a round: give every rank the exact average sum_i x_i / n, and w = a_i; k <- k + 1.

        It costs an all-reduce of the tensors in float64, and waits for every rank. What is in flight is merged first.
        Meanwhile a copy of the tensors is kept. After an error or an interrupt they get their old values again.

        Args:
            narrow: sum in float32: half the bytes, and exact to its rounding. The same on every rank.

        Raises:
            As :meth:`mix` does.
        """
        rounds.exact_round(self.member, narrow=narrow)

    def step_factor(self, scale: float = 1.0) -> float:
        """Return what a local step dz must be multiplied by so that x moves by a_i dz, as in the paper: a_i / w.

        Exactly 1 where that is all but 1.

        Args:
            scale: a further factor of the step.
        """
        self.member.lifetime.refuse_if_on_loan("a step")
        return self.member.mass.step_factor(scale * self.member.mode.step_scale())

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

    def drain(self) -> None:
        """Collective. Wait for and merge every message in flight.

        Synchronous ranks have nothing in flight: then it only makes sure that all of them call it.
        """
        rounds.drain(self.member, "drain()")

    # ------------------------------------------------------------------ saving and loading

    def state(self) -> dict[str, Any]:
        """Return what belongs to this rank, tensors as copies. Local, without side effects.

        ``rank`` and ``size`` count participants; ``data_weight`` is a_i, the :attr:`initial_weight`.

        ``format``, ``run``, ``rank``, ``size``, ``round``, ``push_weight``, ``data_weight``, ``residuals``, and
        ``in_flight``: what is awaited, with the messages that have come and are not due.
        """
        return saving.state(self.member)

    def load_state(self, state: Mapping[str, Any] | None) -> str | None:
        """Continue from what :meth:`state` returned. Local.

        The round is taken over, and the mass starts again at w = a_i. So it sums to n, whether the other ranks load
        their own files or rank 0's. Nothing is lost by that where this rank's own state has w = a_i and nothing in
        flight, as between the rounds of a synchronous run on a doubly stochastic graph: such a state continues bit for
        bit. Inside ``checkpoint.load`` every state does.

        Returns:
            None; or, where something of the state is not taken over, why.

        Raises:
            CheckpointError: a newer release saved the state, in a format that this one does not know.
        """
        self.member.lifetime.refuse_if_over()
        return saving.load(self.member, state)

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Collective. Merge what is in flight, wait for all ranks, and free what is held. Idempotent.

        After an error it returns at once: the other ranks have been told. In a forked child it does nothing.
        """
        self.member.close()

    def __enter__(self) -> PushSum:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.member.fail(error)
        self.close()

    def __repr__(self) -> str:
        return (
            f"PushSum(rank={self.rank}, size={self.size}, graph={self.graph!r}, staleness={self.staleness!r}, "
            f"round={self.round}, push_weight={self.push_weight:.6g})"
        )


def _number(rank: int, name: str, value: Any) -> float | Callable[[], float]:
    """Return a number; of a tensor on an accelerator, what returns it once it is needed."""
    try:
        if hasattr(value, "detach"):
            value = value.detach()  # a loss may still have its graph
            if value.device.type != "cpu" and value.numel() == 1:
                return value.clone().__float__  # type: ignore[no-any-return]
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"rank {rank}: report({name}=...): expected a number, or a tensor of one element; got "
            f"{type(value).__name__} ({error})"
        ) from error


def push_sum_of(optimizer: Any) -> PushSum:
    """Return the push-sum of a wrapped optimizer.

    Raises:
        ConfigurationError: it is not one.
    """
    push_sum = getattr(optimizer, "push_sum", None)
    if not isinstance(push_sum, PushSum):
        raise ConfigurationError(f"optimizer: expected a PushSumOptimizer, got {type(optimizer).__name__}")
    return push_sum
