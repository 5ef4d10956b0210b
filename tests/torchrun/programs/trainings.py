"""What all ranks do together, in every mode, over torch.distributed, where mpi4py is not installed."""

import sys

sys.modules["mpi4py"] = None  # to Python it is not there

import numpy as np  # noqa: E402
import torch  # noqa: E402
from support.scenarios import numpy_training  # noqa: E402

import pushsum_opt as ps  # noqa: E402
from pushsum_opt.job import world  # noqa: E402

rank, size, comm = ps.rank(), ps.size(), world.communicator()

# The same bits as on any other transport.
for staleness in (0, 2):
    for number, (digest, weight) in enumerate(ps.allgather(numpy_training(comm, sleepy=1, staleness=staleness))):
        if rank == 0:
            print(f"digest {staleness} {number} {digest} {weight!r}")

# Ranks of different lengths that wait for nobody: mass and mean are conserved.
z = np.full(400_000, float(rank))
push_sum = ps.PushSum([z], staleness="unbounded")
for _ in range(20 + 10 * rank):
    push_sum.mix()
push_sum.close()
mass, mean = ps.sum(push_sum.push_weight), ps.sum(push_sum.push_weight * z.mean()) / size
assert abs(mass - size) < 1e-12 * size, mass
assert abs(mean - (size - 1) / 2) < 1e-10, mean

# An optimizer, its averages, join(), and values of every kind.
torch.manual_seed(rank)
model = torch.nn.Linear(300, 200)
optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.01), model, staleness=1)
with optimizer.join():
    for _ in range(3 + rank):
        optimizer.zero_grad()
        model(torch.randn(4, 300)).square().mean().backward()
        optimizer.step()
optimizer.drain()
assert ps.consensus_distance(optimizer) > 1e-6
with optimizer.averaged():
    held = ps.allgather(float(model.weight.detach().sum()))
    assert held == held[:1] * size, held
optimizer.close()
assert ps.average(float(rank)) == (size - 1) / 2
assert ps.broadcast_object({"from": rank}, root=size - 1) == {"from": size - 1}
ps.barrier()

# Ranks of one host as one participant: as pairs, where they are even.
if size % 2 == 0:
    pair = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.01), model, within_host="gradients")
    model(torch.randn(4, 300)).square().mean().backward()
    pair.step()
    values = ps.allgather(float(model.weight.detach().sum()))
    assert values[rank] == values[rank ^ 1], values
    pair.close()

# The program's own process group is its own affair: it has needed none, and may make one now.
assert not torch.distributed.is_initialized()
torch.distributed.init_process_group("gloo")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
ps.barrier()
print(f"rank {rank} of {size}: ok")
