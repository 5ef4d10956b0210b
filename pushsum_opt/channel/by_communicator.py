"""One private channel per communicator, for calls that belong to no push-sum. The first such call opens it.

An MPI communicator carries its channel as an attribute. So a channel ends with its communicator, and a later one with
the same handle finds none. Communicators of this library's own are found by themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import MismatchError, PeerFailed, PeerFinished, RanksLost
from ..interrupts import is_interrupt
from ..job import ending
from ..job.process_groups import GroupComm
from ..observe.events import Events, Listener
from ..observe.stall import StallInspector
from ..transport import LoopbackComm, process
from ..transport.calls import current_call
from .channel import Channel

__all__ = ["abandon_all", "found", "leaving_together", "opened", "report", "tell_all"]

FOUND_BY_ALL = (MismatchError, PeerFailed, PeerFinished, RanksLost)
"""Errors that every waiting rank finds by itself, so that this rank need not tell them."""

_own: weakref.WeakKeyDictionary[Any, Channel] = weakref.WeakKeyDictionary()
_open: list[tuple[Any, Channel]] = []  # between processes, with its communicator, oldest first
_keyval: int | None = None


class _Overheard(Listener):
    """Passes waits on to the listeners of every push-sum over the same communicator."""

    def __init__(self, comm: Any) -> None:
        self._comm = weakref.ref(comm) if isinstance(comm, LoopbackComm) else lambda: comm

    def wait_begins(self, call: str, peer: int | None, round: int) -> None:
        for listeners in self._listeners():
            listeners.wait_begins(call, peer, round)

    def wait_ends(self, call: str, peer: int | None, round: int, seconds: float) -> None:
        for listeners in self._listeners():
            listeners.wait_ends(call, peer, round, seconds)

    def stalled(self, seconds: float, what: str) -> None:
        for listeners in self._listeners():
            listeners.stalled(seconds, what)

    def _listeners(self) -> list[Listener]:
        comm = self._comm()
        return [] if comm is None else [one.listeners for one in process(comm).members if one.comm == comm]


def found(comm: Any) -> Channel | None:
    """Return the channel of a communicator, if one is open."""
    channel: Channel | None = _own.get(comm) if _is_own(comm) else comm.Get_attr(_mpi_key())
    return channel


def _is_own(comm: Any) -> bool:
    return isinstance(comm, LoopbackComm | GroupComm)


def report(comm: Any) -> Events:
    """Return what waits on a communicator are reported to: the log, and the listeners of every push-sum over it."""
    events = Events()
    events.subscribe(StallInspector(comm.Get_rank()))
    events.subscribe(_Overheard(comm))
    return events


def opened(comm: Any) -> Channel:
    """Collective. Open the channel of a communicator that has none."""
    channel = Channel.open(comm, report(comm))
    if _is_own(comm):
        _own[comm] = channel
    else:
        comm.Set_attr(_mpi_key(), channel)
    if not isinstance(comm, LoopbackComm):
        _open.append((comm, channel))
        ending.when_all_is_closed(abandon_all)
    return channel


@contextmanager
def leaving_together(comm: Any, channel: Channel) -> Iterator[None]:
    """Inside, all ranks make a call. A rank that leaves it half-way ends it on all; the next call opens a new channel.

    A rank leaves half-way when it is interrupted, or raises an error while a transfer is still under way. (Where all
    ranks raise the same error, all transfers of the call are done.)
    """
    try:
        yield
    except BaseException as error:
        left = is_interrupt(error) or channel.transport.under_way
        alone = process(comm).survival is not None and not is_interrupt(error) and ending.is_of_one_rank(error)
        if left and not alone and not isinstance(error, FOUND_BY_ALL):
            why = f": {error}" if str(error) else ""
            channel.stop_others(f"{type(error).__name__} in {current_call('a call that all ranks make')}{why}")
        if left or isinstance(error, PeerFailed | RanksLost):
            _give_up(comm, channel)
        raise


def _give_up(comm: Any, channel: Channel) -> None:
    if not _is_own(comm):
        comm.Delete_attr(_mpi_key())
    elif _own.pop(comm, None) is not None:
        _close(channel)


def _mpi_key() -> int:
    global _keyval
    if _keyval is None:
        from mpi4py import MPI

        _keyval = MPI.Comm.Create_keyval(delete_fn=lambda comm, keyval, channel: _close(channel))
    return _keyval


def _close(channel: Channel) -> None:
    _open[:] = [pair for pair in _open if pair[1] is not channel]
    channel.close()


def abandon_all() -> None:
    """Close every channel between processes. All ranks do it at the same point: the next call opens a new one."""
    for comm, channel in tuple(_open):  # a copy, because closing a channel removes it
        _give_up(comm, channel)


def tell_all(reason: str) -> None:
    """Tell all ranks that wait in a channel between processes that this one has failed."""
    for _, channel in _open:
        channel.stop_others(reason)
