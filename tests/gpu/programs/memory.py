"""The device's free memory before and after: a closed optimizer leaves nothing behind."""

import gc

import torch
from common import comm, device, report

import pushsum_opt as ps


def free():
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    comm.Barrier()
    value = torch.cuda.mem_get_info()[0]
    comm.Barrier()
    return value


tensor = torch.zeros(64 << 20, device=device)  # 256 MiB
held = []
for _ in range(4):  # the first one also loads kernels, and lets MPI open its handles
    push_sum = ps.PushSum([tensor], graph=ps.graphs.Ring(), staleness=1)
    for _ in range(3):
        push_sum.mix()
    push_sum.close()
    held.append(free())
report(free=held)
