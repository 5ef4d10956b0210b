"""The channel that collective calls such as ``ps.average()`` share on a communicator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .. import transport
from ..errors import CallOrderError
from ..job import ending, training_ranks, world
from . import by_communicator
from .channel import Channel

__all__ = ["together"]

T = TypeVar("T")

SPARE_MAY_CALL = ("ps.barrier()", "ps.broadcast_parameters()")
"""The calls that a waiting spare may make, alone. What they leave in its parameters is replaced when it is taken in."""


def together(comm: Any, call: str, work: Callable[[Channel], T]) -> T:
    """Collective. Do something on the channel that calls like ``ps.average()`` use on a communicator.

    The first such call makes the channel. Where the job is to survive the death of ranks, the survivors do it again.

    Raises:
        MismatchError: the ranks make different calls; the same on every rank.
        PeerFinished: a rank has ended its program.
        PeerFailed: a rank has left the call half-way, by an interrupt or an error of its own.
    """
    if comm is not None:
        transport.check(comm)
    given = world.communicator(comm)
    ending.stop_all_on_error()
    survival = transport.process(given).survival
    if training_ranks.spare() is not None and call not in SPARE_MAY_CALL:
        raise CallOrderError(world.told_to_wait(call))

    def once() -> T:
        comm = world.communicator(given)
        with transport.calling(call):
            channel = by_communicator.found(comm)
            opened = channel is None
            if channel is None:
                channel = by_communicator.opened(comm)  # which compares the calls
            with by_communicator.leaving_together(comm, channel):
                if not opened and channel.size > 1:
                    channel.meet(call)
                return work(channel)

    return once() if survival is None else survival.together(once)
