"""What all transports over torch.distributed share in a process: its connections, and the roll call of the job.

The words of the roll call are left in the store of the job. They are few: only a rank that waits asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from .. import ending, forked_end, process_groups
from ..errors import PeerFailed
from ..process_groups import GroupComm, Job
from .roll_call import Message, Progress, RollCall, group_name
from .set_up import Forming, until_all_come
from .torch_mesh import Mesh
from .waiting import Report

__all__ = ["leave", "mesh_of", "roll_of"]

LONGEST_NAP_S = 20e-3
LOOK_FOR_OTHERS_EVERY_S = 5e-3
LOOK_FOR_THE_DEAD_EVERY_S = 0.5
LINGER_S = 10.0
"""Seconds for which a rank that ends answers questions, where not all ranks are known to use this library."""
END_S = 2.0
"""Seconds that the last words of a rank have to go out."""


class StorePost:
    """See :class:`~pushsum_opt.transport.roll_call.Post`. Where the store is gone, nothing comes any more."""

    def __init__(self, job: Job) -> None:
        self.me = job.rank
        self._store = job.store
        self._read = 0

    def send(self, to: int, message: Message) -> None:
        with _store_may_be_gone():
            number = self._store.add(f"words/{to}", 1)
            self._store.set(f"word/{to}/{number}", json.dumps(message))

    def receive(self) -> list[Message]:
        messages: list[Message] = []
        with _store_may_be_gone():
            count = self._store.add(f"words/{self.me}", 0)
            while self._read < count:
                key = f"word/{self.me}/{self._read + 1}"
                if not self._store.check([key]):  # it is being written
                    break
                messages.append(json.loads(self._store.get(key)))
                self._store.delete_key(key)
                self._read += 1
        return messages


@contextlib.contextmanager
def _store_may_be_gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # of torch.distributed, such as DistNetworkError
        return


_roll: RollCall | None = None
_process = 0
_left = False


def roll_of(job: Job) -> RollCall:
    """Return the roll call of the job, in which this process is one rank."""
    global _roll, _process
    if _roll is None:
        _roll = RollCall(StorePost(job) if job.size > 1 else _Alone())
        _process = os.getpid()
        ending.when_the_end_begins(_begin_to_end)
        ending.when_all_is_closed(leave)  # the first that is told comes last
        ending.when_stopped(_say_stopped)
        forked_end.watch_exit_codes()  # the end of this rank may need to know its own
    return _roll


class _Alone:
    """The post of a process that is alone."""

    me = 0

    def send(self, to: int, message: Message) -> None: ...

    def receive(self) -> list[Message]:
        return []


def _begin_to_end() -> None:
    """The program is over; what is still open is closed after this."""
    assert _roll is not None
    _roll.ending = True


def mesh_of(comm: GroupComm, timeout: float, report: Report) -> Mesh:
    """Return the connections between the ranks of a communicator.

    Those between all ranks of the job serve all communicators. Where there are none yet, the ranks make some of their
    own, so that a part of a job needs nobody else. Then the call is collective.

    Raises:
        PeerTimeout: not every rank came within ``timeout`` seconds.
        PeerFinished: a rank has ended its program.
        PeerFailed: the store of the job is gone.
    """
    job = comm.job
    found: Mesh | None = job.meshes.get(tuple(range(job.size))) or job.meshes.get(comm.ranks)
    if found is None:
        store = None
        if comm.size > 1:
            store = _meet(comm, timeout, report)
        found = job.meshes[comm.ranks] = Mesh(store, comm.ranks, job.rank)
    return found


def _meet(comm: GroupComm, timeout: float, report: Report) -> Any:
    """Wait until all ranks of a communicator have come here. It is a collective of its own in the roll call.

    Returns:
        A part of the store for them.
    """
    from torch.distributed import distributed_c10d

    name, rank = group_name(comm.ranks), comm.job.rank
    here, next_look = False, 0.0
    store = distributed_c10d.PrefixStore(f"mesh {name}", comm.job.store)

    def count(more: int) -> int:
        try:
            return int(store.add("here", more))
        except RuntimeError as error:
            raise PeerFailed(
                f"rank {rank}: the store of torch.distributed is gone ({error}): rank 0 or the launcher, who hold it, "
                "has ended"
            ) from error

    def all_here() -> bool:
        nonlocal here, next_look
        if not here and time.monotonic() >= next_look:
            here = count(0) >= comm.size
            next_look = time.monotonic() + LOOK_FOR_OTHERS_EVERY_S
        return here

    count(1)
    connecting = Progress(roll_of(comm.job), f"connecting {name}", comm.ranks)
    connecting.reach_collective(1)
    until_all_come(Forming(rank, connecting, all_here), timeout, report, 1)
    return store


def _say_stopped(reason: str) -> None:
    """Tell all processes of the job, at best effort, that this one stops with an error."""
    job = process_groups.job_of_torch()
    for mesh in () if job is None else job.meshes.values():
        with contextlib.suppress(Exception):
            mesh.say_stopped(reason)


def leave() -> None:
    """Answer every rank that still asks that this one has ended, until all ranks have. Idempotent.

    Afterwards nothing waits for gloo any more: a thread that still did could crash Python while it ends.
    """
    global _left
    job = process_groups.job_of_torch()
    if _left or job is None or job.size == 1 or (_roll is not None and os.getpid() != _process):
        return
    _left = True
    roll = roll_of(job)
    roll.ended = True
    for mesh in job.meshes.values():
        mesh.ending = True
    with _store_may_be_gone():
        job.store.add(f"ended/{job.rank}", 1)
        job.store.add("ended", 1)
        _listen_until_all_have_ended(job, roll)
    over = [mesh.end(END_S) for mesh in job.meshes.values()]
    if not all(over):
        _end_at_once()


def _listen_until_all_have_ended(job: Job, roll: RollCall) -> None:
    everyone: Mesh | None = job.meshes.get(tuple(range(job.size)))
    begin = time.monotonic()
    look_at, dead = begin + LOOK_FOR_THE_DEAD_EVERY_S, 0
    while job.store.add("ended", 0) + dead < job.size:
        roll.listen()
        now = time.monotonic()
        if everyone is None and now - begin > LINGER_S:
            return
        if everyone is not None and now >= look_at:
            look_at = now + LOOK_FOR_THE_DEAD_EVERY_S
            gone = [peer for peer in range(job.size) if everyone.is_gone(peer)]
            dead = sum(not job.store.add(f"ended/{peer}", 0) for peer in gone)
        time.sleep(min(LONGEST_NAP_S, 1e-3 + 0.01 * (now - begin)))


def _end_at_once() -> None:
    """End this process with its exit code. Exit handlers that were registered before this library do not run."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(forked_end.exit_code())
