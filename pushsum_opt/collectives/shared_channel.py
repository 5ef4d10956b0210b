"""The channel that collective calls such as ``ps.average()`` share on a communicator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import ending, transport, world
from ..channel import Channel, by_communicator

__all__ = ["together"]


@contextmanager
def together(comm: Any, call: str) -> Iterator[Channel]:
    """Collective. Give the channel that calls like ``ps.average()`` use on a communicator; made at the first one.

    Raises:
        MismatchError: the ranks make different calls; the same on every rank.
        PeerFinished: a rank has ended its program.
        PeerFailed: a rank has left the call half-way, by an interrupt or an error of its own.
    """
    if comm is not None:
        transport.check(comm)
    comm = world.communicator(comm)
    ending.stop_all_on_error()
    with transport.calling(call):
        channel = by_communicator.found(comm)
        opened = channel is None
        if channel is None:
            channel = by_communicator.opened(comm)  # which compares the calls
        with by_communicator.leaving_together(comm, channel):
            if not opened and channel.size > 1:
                channel.meet(call)
            yield channel
