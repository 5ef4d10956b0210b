"""Ranks with different numbers of batches, slow ones among them: python uneven.py STALENESS."""

import sys
import time

import torch
from mpi4py import MPI

import pushsum_opt as ps

staleness = sys.argv[1] if sys.argv[1] == "unbounded" else int(sys.argv[1])
comm = MPI.COMM_WORLD
z = torch.zeros(comm.size, 50_000, dtype=torch.float64, requires_grad=True)
optimizer = ps.PushSumOptimizer(torch.optim.SGD([z], lr=1.0), staleness=staleness)
batches = 0
for epoch in range(2):
    with optimizer.join():
        for _ in range(3 + 7 * ((comm.rank + epoch) % comm.size)):
            time.sleep(0.005 * comm.rank)
            z.grad = torch.zeros_like(z)
            z.grad[comm.rank] = -1.0
            optimizer.step()
            batches += 1
with optimizer.averaged():
    mean = z.detach().clone()
expected = torch.tensor(comm.allgather(batches), dtype=torch.float64) / comm.size
torch.testing.assert_close(mean, expected[:, None].expand_as(mean), rtol=1e-12, atol=1e-12)
rounds = comm.allgather(optimizer.round)
assert staleness == "unbounded" or len(set(rounds)) == 1, rounds
optimizer.close()
mass = comm.allreduce(optimizer.push_weight)
assert abs(mass - comm.size) < 1e-12 * comm.size, mass
print(f"rank {comm.rank} of {comm.size}: ok")
