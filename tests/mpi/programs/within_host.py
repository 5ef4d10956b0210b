"""Two hosts of two ranks, pretended: python within_host.py gradients | ddp | fsdp FOLDER."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import pushsum_opt as ps

how, folder = sys.argv[1], Path(sys.argv[2])
rank, size, lanes = ps.rank(), ps.size(), int(os.environ["PUSHSUM_RANKS_PER_HOST"])
lane, host = rank % lanes, rank // lanes

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 3000), nn.Tanh(), nn.Linear(3000, 2)).double()
trained = model
if how != "gradients":
    # One process group per host: its ranks know nothing of the others.
    store = dist.FileStore(str(folder / f"store {host}"), lanes)
    dist.init_process_group("gloo", store=store, rank=lane, world_size=lanes)
if how == "ddp":
    trained = nn.parallel.DistributedDataParallel(model)
if how == "fsdp":
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (lanes,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)

inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
optimizer = ps.PushSumOptimizer(inner, model, within_host=how, staleness=1)
for k in range(8):
    generator = torch.Generator().manual_seed(100 * rank + k)
    inputs = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    optimizer.zero_grad()
    (trained(inputs) - targets).square().mean().backward()
    optimizer.step()
weight, sent = optimizer.push_weight, optimizer.stats()["bytes_sent"]


def whole() -> dict[str, torch.Tensor]:
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


own = whole()
with optimizer.averaged():
    mean = whole()
assert all(torch.equal(before, after) for before, after in zip(own.values(), whole().values(), strict=True))
torch.save({"own": own, "mean": mean, "weight": weight, "sent": sent}, folder / f"{rank}.pt")
optimizer.close()
if how != "gradients":
    dist.destroy_process_group()
print(f"rank {rank} of {size}: ok")
