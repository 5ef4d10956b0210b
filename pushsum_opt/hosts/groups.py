"""The ranks of a job as hosts times lanes, and what the lanes of one host do together.

Lane l is rank l of every host. In push-sum a host is one participant: it has one push weight, and its ranks hold the
same parameters. Between hosts, lane l carries shard l of L of the parameters. So every rank's link is used, and a host
sends its model once, not L times. Inside a host the shards are then put together.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .. import settings
from ..channel import Channel, gather_once
from ..channel.agreement import refuse_bad_data_weights
from ..errors import ConfigurationError
from ..memory import Memory
from ..observe.events import Events, Listener
from ..observe.stall import StallInspector
from ..transport import host_label, split
from .participant import Participant

__all__ = ["Hosts"]

SMALL_SUM_BYTES = 1 << 16
"""Sums up to this size are left to MPI."""
SUM_TAG = 0

_ROW = struct.Struct("<qd")


class Hosts(Participant):
    """This rank's host and lane, where a host is one participant. Construction is collective over all ranks.

    Args:
        comm: all ranks of the job.
        data_weight: v_i of this rank; that of a host is the sum over its ranks.
        sharded: the ranks of a host hold different parts of the model already (FSDP2), so each lane carries all that
            its ranks hold, and nothing is put together.
        timeout: seconds without progress after which waiting for a rank of this host is an error.
        label: what ranks of one host have in common; None: found out here.
        seen: called with the labels of all ranks, before hosts with different numbers of ranks are refused.

    Raises:
        ConfigurationError: on every rank, where hosts have different numbers of ranks, or a data weight is bad.
    """

    kind = "host"

    def __init__(
        self,
        comm: Any,
        *,
        data_weight: float,
        sharded: bool,
        timeout: float,
        label: int | None = None,
        seen: Callable[[Sequence[int]], None] = lambda labels: None,
    ) -> None:
        super().__init__(comm)
        self._own_weight, self._timeout = data_weight, timeout
        label = host_label(comm, settings.read().ranks_per_host) if label is None else label
        labels, weights = _everyone(comm, label, data_weight, timeout)
        seen(labels)
        self._label = label
        members = [rank for rank, its in enumerate(labels) if its == label]
        _refuse_unequal(self.rank, labels)
        self.members = members
        """The ranks of this host, by lane."""
        self.lanes = len(members)
        self.lane = members.index(self.rank)
        self.sharded = sharded
        self.data_weight = float(sum(weights[rank] for rank in members))
        """The sum of v over this host's ranks."""
        self.data_fractions = [float(weights[rank]) / self.data_weight for rank in members]
        """How much the gradients of each of them count; sums to 1."""
        self.data_fraction = self.data_fractions[self.lane]
        """This rank's part of it: how much its gradients count inside the host."""
        self.gossip_comm = split(comm, self.lane)
        self.gossip_ranks = [r for r in range(self.size) if labels[:r].count(labels[r]) == self.lane]
        self._host_comm = split(comm, labels.index(label))
        # Once a rank of the host waits for another one on these, that one has them too, and can revoke them.
        gather_once(comm, b"\0", "making communicators of hosts", timeout)
        self._events = Events()
        self._events.subscribe(StallInspector(self.rank))
        self.channel = Channel.open(self._host_comm, self._events, timeout=timeout, ranks=members)
        """Over the ranks of this host."""
        self.channels = (self.channel,)

    def among(self, comm: Any) -> Hosts:
        return Hosts(comm, data_weight=self._own_weight, sharded=self.sharded, timeout=self._timeout, label=self._label)

    def subscribe(self, listener: Listener) -> None:
        self._events.subscribe(listener)

    def reassemble(self, memory: Memory, round: int, beside: bytes) -> list[bytes]:
        if self.sharded or self.lanes == 1:
            return []
        told = self.channel.meet("reassembling the lanes", round=round, layout=memory.layout_digest, beside=beside)
        received = []
        for chunk in memory.chunks:
            mine = memory.owners[chunk.index] == self.lane
            data = memory.host_bytes(chunk) if mine else np.empty(memory.held_bytes(chunk), np.uint8)
            ticket = self.channel.transport.broadcast(data, memory.owners[chunk.index], "reassembling the lanes")
            received.append((chunk, ticket, None if mine else data))
        for chunk, ticket, data in received:
            self.channel.wait((ticket,), round)
            if data is not None:
                memory.put_host_bytes(chunk, data)
        return [row for lane, row in enumerate(told) if lane != self.lane]

    def sum(self, values: Any, round: int, what: str) -> None:
        """Collective over a host. Replace a flat numpy array by its sum over its ranks, equal bits on each.

        A large array is summed in parts, one on each rank, and then gathered. MPI's own non-blocking sum would move all
        of it to every rank, in steps that each wait for the next poll.
        """
        if values.nbytes < SMALL_SUM_BYTES or self.lanes == 1:
            self.channel.sum(values, what, round=round)
            return
        transport = self.channel.transport
        parts = [values[start:stop] for start, stop in pairwise(self._bounds(values.size))]
        mine, others = parts[self.lane], self.channel.others
        received = {lane: np.empty_like(mine) for lane in others}
        tickets = [transport.expect(received[lane], lane, SUM_TAG, what) for lane in others]
        tickets += [transport.post(parts[lane], lane, SUM_TAG, what) for lane in others]
        self.channel.wait(tickets, round)
        received[self.lane] = mine.copy()
        mine[:] = 0
        for lane in range(self.lanes):  # always in this order, so that the sum has the same bits in every run
            mine += received[lane]
        self.channel.wait([transport.broadcast(part, lane, what) for lane, part in enumerate(parts)], round)

    def _bounds(self, count: int) -> list[int]:
        return [count * lane // self.lanes for lane in range(self.lanes + 1)]

    # ------------------------------------------------------------------ the end

    def tell(self, *, failed: bool, rounds: int, reason: str = "") -> None:
        with contextlib.suppress(Exception):
            self.channel.tell(range(self.lanes), failed=failed, rounds=rounds, reason=reason)
            self.channel.transport.poll(0.0)

    def leave(self, round: int) -> None:
        self.channel.finish()
        self.channel.barrier("every rank of the host to close", round=round)
        self.channel.hear_all_finish(self.channel.others)

    def close(self, *, cleanly: bool) -> None:
        self.channel.close()
        for comm in (self._host_comm, self.gossip_comm):  # after an error, freeing could wait for a rank that is gone
            if cleanly and hasattr(comm, "Free") and _can_be_freed(comm):
                comm.Free()

    def __repr__(self) -> str:
        return f"Hosts({self.size // self.lanes} hosts of {self.lanes} ranks; this is lane {self.lane})"


def _everyone(comm: Any, label: int, data_weight: float, timeout: float) -> tuple[list[int], list[float]]:
    """Collective. Return every rank's host and data weight."""
    found = [_ROW.unpack(row) for row in gather_once(comm, _ROW.pack(label, data_weight), "comparing hosts", timeout)]
    weights = [weight for _, weight in found]
    refuse_bad_data_weights(comm.Get_rank(), dict(enumerate(weights)))
    return [its for its, _ in found], weights


def _refuse_unequal(rank: int, labels: list[int]) -> None:
    counts = [labels.count(label) for label in dict.fromkeys(labels)]
    if len(set(counts)) > 1:
        raise ConfigurationError(
            f"rank {rank}: within_host needs the same number of ranks on every host, as rank l of each carries part l "
            f"of the model; got {', '.join(map(str, counts[:8]))}{', ...' if len(counts) > 8 else ''}. Start equally "
            "many per host, or use within_host=None"
        )


def _can_be_freed(comm: Any) -> bool:
    from ..transport.mpi import can_be_freed

    return can_be_freed(comm)
