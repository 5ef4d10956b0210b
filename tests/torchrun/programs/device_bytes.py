"""Memory that passes for a GPU's goes from rank to rank by a connection in NCCL's place, in every order and size."""

import numpy as np
from torchrun import fake_nccl
from torchrun.fake_nccl import device_bytes
from transport.contract import finish, opened

from pushsum_opt.job import world
from pushsum_opt.transport import ANY

nccl = fake_nccl.use()
comm = world.communicator()
channel, waiter, _ = opened(comm)
right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size

for count in (1, 1000, 3_000_000):
    sent, received = np.full(count, comm.rank + 1, np.uint8), np.zeros(count, np.uint8)
    waiter.wait(
        [
            channel.expect(device_bytes(received), left, 1, "it"),
            channel.post(device_bytes(sent), right, 1, "it", matched=count == 1000),
        ],
        0,
    )
    assert (received == left + 1).all()

# Both ways at once between the same two, with several tags, expected in another order than posted.
for other in {left, right}:
    sizes = [300_000, 7, 90_000, 1, 500_000]
    boxes = [np.zeros(size, np.uint8) for size in sizes]
    order = np.random.default_rng(comm.rank).permutation(len(sizes))
    tickets = [
        channel.post(device_bytes(np.full(size, 50 + i, np.uint8)), other, 10 + i, "it") for i, size in enumerate(sizes)
    ]
    tickets += [channel.expect(device_bytes(boxes[i]), other, 10 + i, "it") for i in order]
    waiter.wait(tickets, 0)
    assert all((box == 50 + i).all() for i, box in enumerate(boxes))

# From anybody; a message shorter than its buffer; host memory on the same tag between two others.
if comm.rank == 0:
    for _ in range(comm.size - 1):
        box = np.full(5000, 255, np.uint8)
        waiter.wait((channel.expect(device_bytes(box), ANY, 3, "it"),), 0)
        sender = int(box[0])
        assert (box[: 100 * sender] == sender).all()
        assert (box[100 * sender :] == 255).all()
else:
    waiter.wait((channel.post(device_bytes(np.full(100 * comm.rank, comm.rank, np.uint8)), 0, 3, "it"),), 0)
sent, on_host, by_nccl = np.full(10_000, 9, np.uint8), np.zeros(10_000, np.uint8), np.zeros(10_000, np.uint8)
tickets = [channel.post(sent, right, 4, "it"), channel.post(device_bytes(sent), right, 4, "it")]
tickets += [channel.expect(on_host, left, 4, "it"), channel.expect(device_bytes(by_nccl), left, 4, "it")]
waiter.wait(tickets, 0)
assert (on_host == 9).all()
assert (by_nccl == 9).all()

# One connection for each direction, whatever came over it; the others' transports have the same.
second, second_waiter, _ = opened(comm)
box = np.zeros(1000, np.uint8)
tickets = [
    second.expect(device_bytes(box), left, 1, "it"),
    second.post(device_bytes(np.ones(1000, np.uint8)), right, 1, "it"),
]
second_waiter.wait(tickets, 0)
others = {left, right}
to, received_from = others | ({0} if comm.rank else set()), others if comm.rank else set(range(1, comm.size))
assert len(nccl.made) == len(to) + len(received_from)
assert not any(connection.aborted for connection in nccl.made)
finish(second, second_waiter)
finish(channel, waiter)
print(f"rank {comm.rank} of {comm.size}: ok")
