"""``comm=`` takes a process group; the program's own collectives go on beside ours."""

import os
import sys

import torch
import torch.distributed as dist

import pushsum_opt as ps
from pushsum_opt.errors import ConfigurationError

dist.init_process_group("gloo")
rank, size = ps.rank(), ps.size()
assert (rank, size) == (dist.get_rank(), dist.get_world_size())
assert (ps.local_rank(), ps.local_size()) == (int(os.environ["LOCAL_RANK"]), size)

even, odd = dist.new_group(range(0, size, 2)), dist.new_group(range(1, size, 2))
mine = odd if rank % 2 else even
if mine is even:
    dist.barrier()  # the odd ranks need nobody else
model = torch.nn.Linear(100, 100)
torch.nn.init.constant_(model.weight, float(rank))
optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), model, comm=mine, staleness=1)
assert model.weight.unique().tolist() == [float(rank % 2)]  # the first rank of the group gives the values
with torch.no_grad():
    model.weight.fill_(float(rank))
if (child := os.fork()) == 0:
    sys.exit(7)  # it ends as Python does: nothing of the rank's connections is taken down
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
for _ in range(30):
    work = dist.all_reduce(torch.ones(1), group=mine, async_op=True)  # the program's own, in the middle of ours
    optimizer.gossip()
    work.wait()
optimizer.drain()
assert abs(float(model.weight.mean()) - sum(range(rank % 2, size, 2)) / (size // 2)) < 1e-3, model.weight.mean()
optimizer.close()
assert ps.sum(1, comm=mine) == size // 2
if mine is odd:
    dist.barrier()
try:
    ps.PushSum([torch.zeros(1)], comm=even if mine is odd else odd)
except ConfigurationError as error:
    assert "process group" in str(error)
else:
    raise AssertionError("a group without this rank was taken")
try:
    ps.PushSum([torch.zeros(1)], on_loss="continue")
except ConfigurationError as error:
    assert "torch.distributed" in str(error)
else:
    raise AssertionError("on_loss='continue' was taken")
dist.destroy_process_group()
ps.barrier()
print(f"rank {rank} of {size}: ok")
