"""Who takes part in the gossip: one rank alone; or, see :class:`~pushsum_opt.hosts.Hosts`, the ranks of a host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..channel import Channel
from ..memory import Memory
from ..observe.events import Listener

__all__ = ["Participant"]


class Participant:
    """One rank that takes part by itself. It has one lane, so what the ranks of a host would do together is empty here.

    Args:
        comm: all ranks of the job.
    """

    kind = "rank"
    """What one participant is, in messages."""

    sharded = False
    """Whether its ranks hold different parts of the model."""

    data_fraction = 1.0
    """This rank's part of the participant's data weight, > 0; they sum to 1."""

    channels: tuple[Channel, ...] = ()
    """The channels over its ranks: none for a rank alone, otherwise one."""

    gossip_ranks: Sequence[int] | None = None
    """The ranks of :attr:`gossip_comm` by their numbers in the job; None: they are the same."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.gossip_comm = comm
        """The communicator of this rank and its counterparts in the other participants."""
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.lane = 0
        """This rank's number in the participant."""
        self.lanes = 1
        """How many ranks the participant has."""

    def among(self, comm: Any) -> Participant:
        """Collective. Return the participant of this rank among others, such as the survivors of a loss."""
        return Participant(comm)

    @property
    def shard(self) -> tuple[int, int]:
        """(l, L): this rank exchanges part l of L of what it holds with other participants."""
        return (0, 1) if self.sharded else (self.lane, self.lanes)

    @property
    def replicas(self) -> tuple[Channel, ...]:
        """The channels over its ranks where these all hold the same values."""
        return () if self.sharded else self.channels

    def subscribe(self, listener: Listener) -> None:
        """Report the waits inside the participant to a listener."""

    def reassemble(self, memory: Memory, round: int, beside: bytes) -> list[bytes]:
        """Collective over its ranks. Take every part of the parameters from the rank whose lane carries it.

        Args:
            beside: what this rank tells the others; of the same length on all of them.

        Returns:
            What the others have told it; nothing where they did not meet.

        Raises:
            MismatchError: the parameters of its ranks lie differently.
        """
        return []

    def sum(self, values: Any, round: int, what: str) -> None:
        """Collective over its ranks. Replace a flat numpy array by its sum over them, equal bits on each."""

    def tell(self, *, failed: bool, rounds: int, reason: str = "") -> None:
        """Tell its other ranks that this one has failed or finished, at best effort."""

    def leave(self, round: int) -> None:
        """Collective over its ranks. Wait until the others have finished too."""

    def close(self, *, cleanly: bool) -> None:
        """Free what was made for it.

        Args:
            cleanly: no error has ended the exchange, so every rank closes.
        """

    def __repr__(self) -> str:
        return f"Participant(rank {self.rank} of {self.size})"
