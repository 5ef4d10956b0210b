"""Rank 1 sends GPU memory to rank 0, and something goes wrong on the way: python nccl_ends.py HOW."""

import atexit
import os
import signal
import sys

if "closed" in sys.argv[1]:  # what is registered before this library is not run where it has to cut the end short
    atexit.register(print, "ended as any program")

import numpy as np
from torchrun import fake_nccl
from torchrun.fake_nccl import device_bytes
from transport.contract import finish, opened

from pushsum_opt.errors import PushSumError
from pushsum_opt.job import ending, world
from pushsum_opt.transport import Notice

HOW = sys.argv[1]
TIME_IS_UP = ("hangs", "hangs and goes on", "hangs and is not closed")
SHORT = (2.0, 6.0)
"""Seconds that the two ranks wait for a transfer that hangs."""


class Connection(fake_nccl.FakeConnection):
    def _meet(self, path):
        if self.sends and HOW == "dies while it connects":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._meet(path)

    def begin(self, buffer):
        if self.sends and HOW == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.sends and HOW == "fails":
            raise RuntimeError("NCCL_ERROR_UNHANDLED_CUDA_ERROR: unhandled cuda error")
        if self.sends and "hangs" in HOW:
            self.done = lambda: False
        else:
            super().begin(buffer)


def one_message(transport, waiter, sent, received):
    if comm.rank == 1:
        tickets = [transport.post(sent, 0, 1, "its message")]
    else:
        tickets = [transport.expect(received, 1, 1, "its message")]
    while "hangs" in HOW and not nccl.made:  # the deadline is for the transfer
        transport.poll(0.01)
    waiter.wait(tickets, 0)


def fails_while_it_sends():
    """Rank 1 does not close, and its GPU is free all the same."""
    ticket = channel.post(on_gpu[0], 0, 1, "its message")
    while not nccl.made:
        channel.poll(0.01)
    channel.tell([0], Notice(1, True, 0, 0, "ValueError: the disk is full"))
    assert nccl.made[0].aborted
    assert not ticket.done


def gives_up_before_rank_0_comes():
    both, both_wait, _ = opened(comm)
    if comm.rank == 1:
        channel.post(on_gpu[0], 0, 1, "its message")
        channel.poll(0.1)
        channel.close()
    both_wait.wait((both.barrier("one has closed"),), 0)
    if comm.rank == 0:
        one_message(channel, waiter, *on_gpu)


fake_nccl.FakeConnection = Connection
nccl = fake_nccl.use()
comm = world.communicator()
ending.stop_all_on_error()
if HOW == "no NCCL":
    nccl.new_id = lambda: 1 / 0
sent, received = np.full(100_000, 7, np.uint8), np.zeros(100_000, np.uint8)
on_gpu = device_bytes(sent), device_bytes(received)
channel, waiter, _ = opened(comm, timeout=SHORT[comm.rank] if HOW in TIME_IS_UP else 30.0)
if HOW == "hangs and fails" and comm.rank == 1:
    fails_while_it_sends()
    sys.exit()
try:
    if HOW == "closes before":
        gives_up_before_rank_0_comes()
        sys.exit()
    one_message(channel, waiter, *on_gpu if HOW != "lies elsewhere" else (on_gpu[0], received))
except PushSumError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    if HOW == "hangs and is not closed":
        sys.exit(3)
    channel.close()
    assert all(connection.aborted for connection in nccl.made)
    if HOW != "hangs and goes on":
        raise
HOW = "goes on"
channel, waiter, _ = opened(comm)
one_message(channel, waiter, *on_gpu)
assert (received == (7 if comm.rank == 0 else 0)).all()
assert len(nccl.made) == 2
finish(channel, waiter)
print(f"rank {comm.rank} of {comm.size}: ok")
