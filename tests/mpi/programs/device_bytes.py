"""Memory that is only known by its address is sent and received: what MPI does with it is its own business."""

import numpy as np
from mpi4py import MPI
from torchrun.fake_nccl import device_bytes
from transport.contract import finish, opened

comm = MPI.COMM_WORLD
channel, waiter, _ = opened(comm)
right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
for count in (1, 1000, 3_000_000):
    sent = np.full(count, comm.rank + 1, np.uint8)
    received = np.zeros(count, np.uint8)

    tickets = [
        channel.expect(device_bytes(received), left, 1, "it"),
        channel.post(device_bytes(sent), right, 1, "it"),
    ]
    waiter.wait(tickets, 0)
    assert (received == left + 1).all()
finish(channel, waiter)
print(f"rank {comm.rank} of {comm.size}: ok")
