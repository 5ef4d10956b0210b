"""Rounds after torch's pool has taken nearly all memory of the device, as activations do once training has begun."""

import torch
from common import comm, device, report

import pushsum_opt as ps

z = torch.full((64 << 20,), float(comm.rank), device=device)  # 256 MiB
found = {}
for staleness in (0, 1):
    torch.cuda.empty_cache()
    push_sum = ps.PushSum([z], graph=ps.graphs.Ring(), staleness=staleness)
    comm.Barrier()
    free = torch.cuda.mem_get_info()[0]
    comm.Barrier()
    peak = torch.empty(int(0.95 * free / comm.size), dtype=torch.uint8, device=device)
    del peak  # free again, but in torch's pool
    comm.Barrier()
    for _ in range(4):
        push_sum.mix()
    push_sum.drain()
    found[str(staleness)] = push_sum.push_weight
    push_sum.close()
report(weights=found)
