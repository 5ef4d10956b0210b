"""What all transports over torch.distributed share in a process: its connections, and the roll call of the job."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from ...errors import PeerFailed
from ...job import ending, forked_end, process_groups
from ...job.process_groups import GroupComm, Job
from ..roll_call import Message, RollCall, group_name
from ..set_up import Forming, until_all_come
from ..waiting import Report
from .meeting import Meeting
from .mesh import INSIDE_BYTES, Mesh

__all__ = ["leave", "mesh_of", "roll_of"]

LONGEST_NAP_S = 20e-3
LOOK_FOR_THE_DEAD_EVERY_S = 0.5
END_S = 2.0
"""Seconds that the last words of a rank have to go out."""


class MeshPost:
    """See :class:`~pushsum_opt.transport.roll_call.Post`. Ranks that are not connected hear nothing of each other."""

    def __init__(self, job: Job) -> None:
        self.me = job.rank
        self._job = job

    def send(self, to: int, message: Message) -> None:
        for mesh in self._meshes():
            if to in mesh.ranks:
                mesh.say(mesh.ranks.index(to), word_of(message))
                return

    def receive(self) -> list[Message]:
        return [json.loads(word) for mesh in self._meshes() for word in mesh.words()]

    def _meshes(self) -> tuple[Mesh, ...]:
        return tuple(self._job.meshes.values())  # a thread may send or receive while another one makes a mesh


def word_of(message: Message) -> bytes:
    """Return a message as it travels: inside a frame, which has no room for a long chain of ranks or a long name.

    The ranks at the end of the chain are left out then, and where that is not enough, the place in the program.
    """
    while len(word := json.dumps(message).encode()) > INSIDE_BYTES and message.get("chain"):
        message = {**message, "chain": message["chain"][:-1]}
    if len(word) > INSIDE_BYTES:
        word = json.dumps({**message, "whereabouts": None}).encode()
    return word


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
        _roll = RollCall(MeshPost(job))
        _process = os.getpid()
        ending.when_the_end_begins(_begin_to_end)
        ending.when_all_is_closed(leave)  # the first that is told comes last
        ending.when_stopped(_say_stopped)
        forked_end.watch_exit_codes()  # the end of this rank may need to know its own
    return _roll


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
    """Wait until all ranks of a communicator have come here.

    Returns:
        A part of the store for them, with nothing in it.
    """
    from torch.distributed import distributed_c10d

    rank = comm.job.rank
    store = distributed_c10d.PrefixStore(f"mesh {group_name(comm.ranks)}", comm.job.store)
    meeting = Meeting(store, comm.rank, comm.size)
    try:
        until_all_come(Forming(rank, None, meeting.all_here), timeout, report)
    except RuntimeError as error:
        raise PeerFailed(
            f"rank {rank}: the store of torch.distributed is gone ({error}): rank 0, or the launcher that holds it, "
            "has ended"
        ) from error
    return distributed_c10d.PrefixStore(meeting.token, store)


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
    meshes = [mesh for mesh in job.meshes.values() if mesh.size > 1]
    for mesh in meshes:
        mesh.ending = True
    for mesh in meshes:
        with _store_may_be_gone():
            mesh.store.add(f"ended {mesh.me}", 1)
            mesh.store.add("ended", 1)
    for mesh in meshes:
        with _store_may_be_gone():
            _listen_until_all_have_ended(mesh, roll)
    over = [mesh.end(END_S) for mesh in meshes]
    if not all(over):
        _end_at_once()


def _listen_until_all_have_ended(mesh: Mesh, roll: RollCall) -> None:
    begin = time.monotonic()
    look_at, dead = begin + LOOK_FOR_THE_DEAD_EVERY_S, 0
    while mesh.store.add("ended", 0) + dead < mesh.size:
        roll.listen()
        now = time.monotonic()
        if now >= look_at:
            look_at = now + LOOK_FOR_THE_DEAD_EVERY_S
            gone = [peer for peer in range(mesh.size) if mesh.is_gone(peer)]
            dead = sum(not mesh.store.add(f"ended {peer}", 0) for peer in gone)
        time.sleep(min(LONGEST_NAP_S, 1e-3 + 0.01 * (now - begin)))


def _end_at_once() -> None:
    """End this process with its exit code. Exit handlers that were registered before this library do not run."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(forked_end.exit_code())
