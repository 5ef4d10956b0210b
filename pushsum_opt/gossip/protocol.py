"""What every way of gossiping offers to the push-sum above it, and what it is given to work with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..channel import Channel
from ..errors import LayoutError
from ..faults import Ledger
from ..graphs import Graph
from ..graphs.reach import rounds_to_reach_all
from ..log import log
from ..memory import Memory
from ..observe.events import Events
from ..transport import Transport
from .means import Means
from .merging import Merger

__all__ = ["Exchange", "InFlight", "Mode"]

USUALLY_LATE = 1
"""Rounds after which a message is taken to be merged in the asynchronous mode, where nothing says so."""

RESTORED = "a chunk of a message that was saved"

InFlight = tuple[float, dict[int, Any]]
"""A message that has come and is not merged: its mass, and a slab by chunk index."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Everything that a round works with."""

    memory: Memory
    channel: Channel
    graph: Graph
    events: Events
    merger: Merger
    initial_weight: float
    """a_i, the mass with which this rank began."""

    ledger: Ledger
    """What was given and accepted in this epoch."""

    means: Means
    """What ranks report, whose means ride in the headers."""

    epoch: int = 0
    """How often the ranks that take part have changed."""

    @property
    def transport(self) -> Transport:
        """What carries the messages of the channel."""
        return self.channel.transport


class Mode(ABC):
    """Decides which messages a round merges: the only difference between the modes."""

    staleness: int | str

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        graph, size, memory = exchange.graph, exchange.transport.size, exchange.memory
        if memory.codes and size > 1:
            late = self.staleness if isinstance(self.staleness, int) else USUALLY_LATE
            memory.prepare_passes()
            memory.follow_graph(rounds_to_reach_all(graph, size), graph.window(size), late)

    def reserve(self) -> None:
        """Make the buffers of an accelerator that rounds need; at the start, and again when tensors were added.

        Later torch's pool may hold all of its memory. On the host they are made when they are first used.

        Raises:
            OutOfMemoryError: there is no memory for them.
        """
        if self._exchange.memory.pending_buffers:
            self._exchange.memory.reserve()
            self._make_slabs()

    @abstractmethod
    def _make_slabs(self) -> None:
        """Make the slabs of :meth:`reserve`; none of this rank's are in use."""

    def _in_degrees(self) -> list[int]:
        """Return how many ranks send to this one, by round, over the window of the graph."""
        graph, transport = self._exchange.graph, self._exchange.transport
        rounds = range(graph.window(transport.size))
        return [len(graph.in_peers(transport.rank, transport.size, k)) for k in rounds]

    def _all_out_peers(self) -> set[int]:
        """Return the ranks to which this one ever sends, over the window of the graph."""
        graph, transport = self._exchange.graph, self._exchange.transport
        rounds = range(graph.window(transport.size))
        return {peer for k in rounds for peer, _ in graph.gives(transport.rank, transport.size, k)}

    @abstractmethod
    def exchange(self, round: int, push_weight: float) -> float:
        """Give, and merge what is due.

        Args:
            round: k, counted from 0; the same on every rank, unless asynchronous.
            push_weight: w before the round.

        Returns:
            w after it.
        """

    @abstractmethod
    def drain(self, round: int, push_weight: float, call: str) -> float:
        """Wait for and merge all that is in flight. Collective.

        Args:
            call: the name of the call that all ranks make together.

        Returns:
            w afterwards.
        """

    @abstractmethod
    def await_in_flight(self, round: int, push_weight: float, call: str) -> float:
        """Wait until all that is in flight has come, so that it can be counted. Collective.

        Returns:
            w afterwards: unchanged, unless asynchronous.
        """

    @abstractmethod
    def in_flight(self) -> Iterable[InFlight]:
        """Return the messages that have come and are not merged."""

    def rounds_in_flight(self) -> Sequence[int]:
        """Return the rounds whose messages are still to be merged, oldest first: the same on all ranks in step. Local.

        Empty where no message outlives its round, and where ranks are not in step.
        """
        return ()

    # ------------------------------------------------------------------ saving and loading what is in flight

    def state(self) -> list[dict[str, Any]]:
        """Return what is awaited, oldest round first, with copies of the messages that have come. Local.

        Each item has ``round``, in which its messages were sent; ``messages``: ``sender``, ``mass`` and ``tensors`` (by
        name, as they travelled) of each; and ``missing``, how many have not come: none after :meth:`await_in_flight`.
        The list is empty where no message outlives its round.
        """
        return []

    def load_state(self, awaited: Sequence[Mapping[str, Any]], push_weight: float) -> float:
        """Continue with what :meth:`state` returned, as if these messages had just come. Local.

        They are merged when they are due: at once where no message outlives its round.

        Args:
            push_weight: w before.

        Returns:
            w afterwards.
        """
        self.forget()
        memory, merger = self._exchange.memory, self._exchange.merger
        slabs = {}
        if awaited:
            slabs = {chunk.index: memory.new_slab(chunk.nbytes, chunk.device, RESTORED) for chunk in memory.exchanged}
        for item in awaited:
            for message in item["messages"]:
                memory.load_message_state(slabs, message["tensors"])
                for chunk in memory.exchanged:
                    slab = slabs[chunk.index]
                    merger.merge(chunk, slab, message["sender"], item["round"], push_weight, message["mass"])
                push_weight += message["mass"]
        return push_weight

    def report_merges(self) -> None:
        """Report what became of all that was merged so far.

        Raises:
            NonFiniteError: a chunk holds inf or nan and ``nonfinite="raise"``; it was not merged.
        """
        self._exchange.merger.report(wait=True)

    def forget(self) -> None:  # noqa: B027  (most modes have nothing to forget)
        """Drop what is in flight to this rank, with its mass; where it is still to come, once it has. Local."""

    # ------------------------------------------------------------------ when ranks have died

    @abstractmethod
    def surely_opened(self, peer: int, sent_in: int, heard: int) -> bool:
        """Tell whether a rank that died must have opened a message of this rank.

        Args:
            sent_in: the round of that message.
            heard: the latest round in which the dead rank has surely sent; -1: none.
        """

    def merge_restored(self) -> None:  # noqa: B027  (most modes hold none)
        """Merge the messages that came from a checkpoint: no sender of this epoch can take them back."""

    # ------------------------------------------------------------------ meeting, and the end

    def meet(self, round: int, call: str) -> None:
        """Wait until every rank makes the same call in the same round, on tensors that lie alike. Collective.

        Raises:
            MismatchError: on every rank, when they call different things, or their tensors lie differently.
            LayoutError: a tensor of this rank has another shape or dtype than before.
        """
        self._exchange.channel.meet(call, round=round, layout=self._layout())

    def _layout(self) -> bytes:
        """Return what the tensors of all ranks are to have in common now; at the end it matters no more."""
        if self._exchange.channel.closing:
            return bytes(8)
        self._exchange.memory.refresh()
        return self._exchange.memory.layout_digest

    def _follow_the_plan(self, round: int, in_flight: bool) -> None:
        """Take the tensors as they lie now.

        At the end they may have another form, as a model has that is converted to be saved. What is in flight is then
        merged into the memory that they had before, which is no longer used.

        Args:
            in_flight: there are messages of the form that the tensors had before.

        Raises:
            LayoutError: tensors have another form now.
        """
        exchange = self._exchange
        memory, rank = exchange.memory, exchange.transport.job_rank()
        if exchange.channel.closing and not memory.keeps_its_form():
            if in_flight:
                log.warning(
                    "rank %d, round %d: the model was converted before close(), so messages that were in flight are "
                    "not merged into it. To have them in it, call drain() or close() before the conversion",
                    rank,
                    round,
                )
            return
        before = memory.layout_digest, memory.exchanged
        memory.refresh()
        if (memory.layout_digest, memory.exchanged) != before and in_flight:
            raise LayoutError(
                f"rank {rank}, round {round}: the parameters changed their strides while messages of the old form are "
                "in flight. Call drain() on every rank before module.to(...)"
            )

    def step_scale(self) -> float:
        """Return the factor, beside a_i / w, by which the local step is scaled."""
        return 1.0

    def close(self) -> None:  # noqa: B027  (most modes have nothing to take back)
        """Take back what still waits for messages; called once, when none are in flight or an error ended all."""

    def extra_bytes(self) -> int:
        """Bytes of the slabs that are held."""
        return 0
