"""Rounds with local steps on the device: bits, mass and mean at the end.

rounds.py RESULTS STALENESS DTYPE WIRE SEED: sleeps on every stream with a SEED above 0; DTYPE "mixed" puts float32,
bfloat16 and float64 on the device and float32 on the host into one round.
"""

import sys

import torch
from common import comm, device, digest, report, sleep_everywhere

import pushsum_opt as ps
from pushsum_opt.gossip.means import SKETCH

staleness = sys.argv[2] if sys.argv[2] == "unbounded" else int(sys.argv[2])
dtype, wire, seed = sys.argv[3], sys.argv[4], int(sys.argv[5])
SHAPES = [(257,), (1024, 1024), (3, 5, 7), (1,), (4097,), (2048, 300)]
KINDS = {"mixed": [("float32", device), ("bfloat16", device), ("float64", device), ("float32", "cpu")]}

generator = torch.Generator().manual_seed(comm.rank)
tensors = {}
for index, shape in enumerate(SHAPES):
    for number, (kind, place) in enumerate(KINDS.get(dtype, [(dtype, device)])):
        values = torch.randn(shape, generator=generator).to(getattr(torch, kind))
        tensors[f"{index}.{number}"] = values.to(place)
strided = torch.randn(50, 40, generator=generator, dtype=torch.float64 if dtype == "float64" else torch.float32)
tensors["strided"] = strided.to(device)[:, ::2]
start = [tensor.double().cpu().clone() for tensor in tensors.values()]
steps = [torch.zeros_like(values) for values in start]

side = torch.cuda.Stream() if device.type == "cuda" else None
push_sum = ps.PushSum(tensors, staleness=staleness, wire_dtype=None if wire == "none" else wire)
if seed and device.type == "cuda":
    sleep_everywhere(push_sum.memory, f"{seed} on {comm.rank}")
push_sum.means()  # from now on it sums up a sample of z in some rounds
for turn in range(24 if wire == "int8" else 14):  # in eight bits from the 17th on; a window has 12 rounds at most
    with push_sum.local_step():
        for tensor, step in zip(tensors.values(), steps, strict=True):
            change = torch.randn(tensor.shape, generator=generator).mul(0.01).to(tensor)
            before = tensor.double().cpu().clone()  # on the host the rest is no copy
            tensor += change
            step += tensor.double().cpu() - before
    if side is not None and turn % 3 == 2:  # a round may stand on any stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            push_sum.mix()
        torch.cuda.current_stream().wait_stream(side)
    else:
        push_sum.mix()
push_sum.drain()

exact = ps.average(torch.cat([(a + b).reshape(-1) for a, b in zip(start, steps, strict=True)]), data_weight=1.0)
numerators = [push_sum.memory.numerator(chunk, push_sum.push_weight) for chunk in push_sum.memory.chunks]
held = ps.average(float(sum(values.sum() for values in numerators)), data_weight=1.0)  # a tensor would be float32
weights = ps.average(push_sum.push_weight, data_weight=1.0)
facts = {"digest": digest(tensors.values()), "weight": push_sum.push_weight, "memory": push_sum.memory}
facts["sketch"] = push_sum.member.means._reported[0, SKETCH].tolist()
error = abs(float(held) - float(exact.sum()))
distance = ps.consensus_distance(push_sum)
push_sum.close()
report(**facts, mean_weight=weights, error=error, count=exact.numel(), distance=distance)
