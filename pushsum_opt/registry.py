"""What is open in this process, in the order in which it was made, which is the same on every rank."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import Any, Protocol

from . import world
from .errors import PushSumError

__all__ = ["Member", "register", "still_open"]


class Member(Protocol):
    """What is registered; :class:`pushsum_opt.PushSum` is one."""

    transport: Any

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...


_made: list[weakref.ref[Any]] = []
_lock = threading.Lock()


def register(member: Member) -> None:
    with _lock:
        _made[:] = [ref for ref in _made if (alive := ref()) is not None and not alive.closed]
        _made.append(weakref.ref(member))


def still_open() -> list[Any]:
    with _lock:
        return [member for ref in _made if (member := ref()) is not None and not member.closed]


@atexit.register
def _close_at_exit() -> None:
    """Bring messages home before MPI goes away; a rank that still trains is told that this one has finished."""
    for member in still_open():
        if member.transport.name == "mpi":
            try:
                member.close()
            except PushSumError as error:
                world.abort(error)
