"""More than 2^31 bytes, and more than 2^29 elements in one tensor: 64-bit indices, counts and addresses everywhere."""

import sys

import torch
from common import comm, device, report

import pushsum_opt as ps

elements = int(sys.argv[2])
tensor = torch.full((elements,), float(comm.rank), device=device)
tensor[-1] = 100.0 * comm.rank
tensor[elements // 2] = 10.0 * comm.rank
push_sum = ps.PushSum([tensor], graph=ps.graphs.Ring())
memory = push_sum.memory.name
push_sum.mix()
mean = (comm.size - 1) / 2
right = [
    bool((tensor[: elements // 2] == mean).all()),
    tensor[elements // 2].item() == 10 * mean,
    bool((tensor[elements // 2 + 1 : -1] == mean).all()),
    tensor[-1].item() == 100 * mean,
]
push_sum.close()
report(right=right, memory_name=memory)
