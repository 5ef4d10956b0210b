"""Small messages between spares and the ranks that train, over ``MPI.COMM_WORLD``. Nobody waits for them.

Processes have their numbers in ``MPI.COMM_WORLD`` here.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from mpi4py import MPI

__all__ = ["TO_RANKS", "TO_SPARES", "dead", "receive", "send"]

TO_SPARES = 31991
TO_RANKS = 31992

Word = dict[str, Any]


def send(to: int, tag: int, **word: Any) -> None:
    """Send something that JSON can hold."""
    data = json.dumps(word).encode()
    with contextlib.suppress(MPI.Exception):  # it is known to be dead
        _kept.append((MPI.COMM_WORLD.Issend([data, MPI.BYTE], to, tag), data))


def receive(tag: int) -> list[tuple[int, Word]]:
    """Return what has come, with its senders."""
    found: list[tuple[int, Word]] = []
    status = MPI.Status()
    while True:
        try:
            message = MPI.COMM_WORLD.Improbe(MPI.ANY_SOURCE, tag, status)
        except MPI.Exception:
            if not hasattr(MPI.COMM_WORLD, "Ack_failed"):
                raise
            MPI.COMM_WORLD.Ack_failed()  # processes have died: from now on MPI lets this one hear the others again
            return found
        if message is None:
            return found
        data = bytearray(status.Get_count(MPI.BYTE))
        sender = status.Get_source()
        message.Recv([data, MPI.BYTE])
        found.append((sender, json.loads(data.decode())))


def dead() -> set[int]:
    """Return the processes that have died, as far as MPI has told this one."""
    if not hasattr(MPI.COMM_WORLD, "Get_failed"):
        return set()
    failed, everyone = MPI.COMM_WORLD.Get_failed(), MPI.COMM_WORLD.Get_group()
    found = set(failed.Translate_ranks(list(range(failed.Get_size())), everyone))
    failed.Free()
    everyone.Free()
    return found


_kept: list[Any] = []  # a send that fails must not be freed
