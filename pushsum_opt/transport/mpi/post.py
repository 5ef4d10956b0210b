"""The messages of a roll call over MPI; and the last thing that a rank does, as others may still ask it.

Before the first channel over all ranks of the job is made, there is no private communicator for them. Until then they
go over ``MPI.COMM_WORLD`` with a tag of their own. Then they move to a communicator of their own, and none is left over
that a receive of the user's, with any tag, could take.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from ...job import ending, forked_end, training_ranks, world
from ..roll_call import Message, RollCall

__all__ = ["MpiPost", "leave", "roll_of_the_job"]

TAG = 32001
"""The tag of a question or an answer. One above it begin those of :func:`leave`."""
LINGER_S = 10.0
"""Seconds for which a rank that ends answers questions, where not all ranks are known to use this library."""
LAST_LOOK_S = 1.0
"""Seconds for which a rank that ends receives what others had sent it; more would come only from a rank that died."""
LONGEST_NAP_S = 10e-3
FINALIZE_S = 10
"""Seconds that MPI has to end after ranks were lost; whole ones, for alarm()."""


class MpiPost:
    """Sends and receives by probing; constructing it sends nothing."""

    def __init__(self) -> None:
        self.me = MPI.COMM_WORLD.Get_rank()
        self.size = MPI.COMM_WORLD.Get_size()
        self.office: MPI.Comm | None = None
        """The private communicator of all ranks, once there is one."""
        self._sending: list[tuple[MPI.Request, bytes]] = []
        self._sent = np.zeros(self.size)  # to each rank, over the communicator that is used now
        self._received = 0

    def send(self, to: int, message: Message) -> None:
        data = json.dumps(message).encode()
        self._sending = [one for one in self._sending if not _done(one[0])]
        self._sent[to] += 1
        try:
            request = (self.office or MPI.COMM_WORLD).Isend([data, MPI.BYTE], to, TAG)
        except MPI.Exception:
            return  # it has died, and will be found out by whoever waits for it
        self._sending.append((request, data))

    def receive(self) -> list[Message]:
        messages = []
        status = MPI.Status()
        while (found := self._probe(status)) is not None:
            data = bytearray(status.Get_count(MPI.BYTE))
            found.Recv([data, MPI.BYTE])
            messages.append(json.loads(data.decode()))
            self._received += 1
        return messages

    def _probe(self, status: MPI.Status) -> MPI.Message | None:
        comm = self.office or MPI.COMM_WORLD
        try:
            return comm.Improbe(MPI.ANY_SOURCE, TAG, status)
        except MPI.Exception:
            if not hasattr(comm, "Ack_failed"):
                raise
            comm.Ack_failed()  # ranks have died: from now on MPI lets this rank hear the others again
            return None

    def open_office(self, wait: Callable[[Callable[[], bool]], None]) -> None:
        """Collective over all ranks of the job. Move to a communicator of its own.

        Args:
            wait: returns once a function returns True.
        """
        office, request = MPI.COMM_WORLD.Idup()
        _kept.append(office)
        wait(request.Test)
        self.take_what_is_left(office, wait)
        self.office = office
        self._sent[:], self._received = 0, 0

    def take_what_is_left(self, comm: MPI.Comm, wait: Callable[[Callable[[], bool]], object]) -> None:
        """Collective over all ranks of the job. Receive what was sent to this rank: questions of waits that are over.

        Args:
            comm: a communicator of all ranks.
            wait: returns once a function returns True.
        """
        total = self._sent.copy()
        request = comm.Iallreduce(MPI.IN_PLACE, [total, MPI.DOUBLE], MPI.SUM)
        _kept.append((request, total))
        wait(request.Test)

        def nothing_is_left() -> bool:
            self.receive()
            return bool(self._received >= total[self.me])

        wait(nothing_is_left)


def _done(request: MPI.Request) -> bool:
    """Tell whether a transfer has ended, well or by the death of the other rank."""
    try:
        return bool(request.Test())
    except MPI.Exception:
        return True


_kept: list[Any] = []  # what MPI may still write into
_roll: RollCall | None = None
_post: MpiPost | None = None
_process = 0
_left = False


def roll_of_the_job() -> RollCall:
    """Return the roll call of ``MPI.COMM_WORLD``, in which this process is one rank."""
    global _roll, _post, _process
    if _roll is None:
        _post = MpiPost()
        _roll = RollCall(_post)
        _process = os.getpid()
        ending.when_the_end_begins(_begin_to_end)
        ending.when_all_is_closed(leave)  # the first that is told comes last
    return _roll


def _begin_to_end() -> None:
    """The program is over; what is still open is closed after this."""
    assert _roll is not None
    _roll.ending = True


def post_of_the_job() -> MpiPost:
    """Return what carries its messages."""
    roll_of_the_job()
    assert _post is not None
    return _post


def leave() -> None:
    """Answer every rank that still asks that this one has ended, until all ranks have. The last thing before MPI ends.

    MPI_Finalize waits for all ranks in any case, but answers nobody meanwhile. This does nothing where MPI does not
    run, or in a forked process. Idempotent.
    """
    global _left
    if training_ranks.spare() is not None:  # nobody asks it, and it is not one of those that leave together
        return
    if _left or not MPI.Is_initialized() or MPI.Is_finalized() or MPI.COMM_WORLD.Get_size() == 1:
        return
    roll = roll_of_the_job()
    if os.getpid() != _process:
        return
    _left = True
    survival = ending.THIS.survival
    if survival is not None:
        survival.say_over()
    roll.ended = True
    assert _post is not None
    if training_ranks.has_spares():
        _wait_for_those_that_train(roll)
        training_ranks.dismiss_spares()
    elif _post.office is not None:
        _wait_for_all(roll, _post)
    else:
        _leave_one_by_one(roll, _post)
    if survival is not None and MPI.COMM_WORLD.Get_failed().Get_size():
        _end_in_any_case()


def _end_in_any_case() -> None:
    """Have the system end this process where MPI_Finalize does not return, as Open MPI's sometimes does after deaths.

    Everything of this rank is done by then. mpirun takes it for one more death, of which it says nothing. Another exit
    code than 0 would be lost so: such a rank ends here and now, and mpirun ends the job with its code. Exit handlers
    that were registered before this library was imported do not run then.
    """
    if code := forked_end.exit_code():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(FINALIZE_S)


def _wait_for_all(roll: RollCall, post: MpiPost) -> None:
    """Answer questions until all ranks have come here. Where some have died, MPI says so, and the others just go.

    Then nobody asks any more. What is under way is received, as MPI would warn of it: UCX does.
    """
    assert post.office is not None
    with contextlib.suppress(MPI.Exception):
        _listen_until(roll, post.office.Ibarrier().Test, float("inf"))
        deadline = time.monotonic() + LAST_LOOK_S
        with roll.talking:
            post.take_what_is_left(post.office, lambda done: _nap_until(done, deadline))


def _wait_for_those_that_train(roll: RollCall) -> None:
    """Answer questions until all ranks that train have come here. A spare that was not taken in has none to wait for.

    The roll call goes over ``MPI.COMM_WORLD`` in a job with spares, so that it reaches those that are taken in.
    """
    if training_ranks.bench() is None:  # this rank has not asked for the others
        return
    with contextlib.suppress(MPI.Exception):
        _listen_until(roll, world.communicator().Ibarrier().Test, float("inf"))


def _leave_one_by_one(roll: RollCall, post: MpiPost) -> None:
    """A barrier in log2 n messages (dissemination) that can be given up: some ranks may not use this library."""
    deadline = time.monotonic() + LINGER_S
    nothing = bytearray(1)
    for step in range((post.size - 1).bit_length()):
        there, here = (post.me + (1 << step)) % post.size, (post.me - (1 << step)) % post.size
        sent = MPI.COMM_WORLD.Isend([nothing, MPI.BYTE], there, TAG + 1 + step)
        _kept.append((sent, nothing))
        received = MPI.COMM_WORLD.Irecv([bytearray(1), MPI.BYTE], here, TAG + 1 + step)
        if not _listen_until(roll, received.Test, deadline):
            received.Cancel()
            received.Wait()
            return


def _listen_until(roll: RollCall, done: Callable[[], bool], deadline: float) -> bool:
    """Answer questions until something is done; tell whether it was before the deadline."""

    def listened() -> bool:
        if done():
            return True
        roll.listen()
        return False

    return _nap_until(listened, deadline)


def _nap_until(done: Callable[[], bool], deadline: float) -> bool:
    """Sleep until something is done; tell whether it was before the deadline."""
    begin = time.monotonic()
    while not done():
        now = time.monotonic()
        if now >= deadline:
            return False
        time.sleep(min(LONGEST_NAP_S, 1e-4 + 0.01 * (now - begin)))
    return True
