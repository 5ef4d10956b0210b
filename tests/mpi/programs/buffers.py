"""Buffers that travel, of which elements are inf: at the start on one rank only, and later: python buffers.py."""

import logging

import torch
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import MismatchError

logging.basicConfig(level=logging.INFO)
rank, size = ps.rank(), ps.size()
INF = float("inf")


def make():
    model = nn.Module()
    model.p = nn.Parameter(torch.zeros(3))
    for name in ("early", "late"):
        model.register_buffer(name, torch.zeros(3))
    return model


def wrap(model, **options):
    return ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), model, **options)


for staleness in (0, 1):
    model = make()
    if rank == 1:
        model.early[0] = -INF
    with wrap(model, buffers="gossip", staleness=staleness) as optimizer:
        model.p.data.fill_(rank)
        for k in range(60):
            if k == 2:
                model.late[1:] = -INF
            model.p.grad = torch.zeros(3)
            optimizer.step()
        optimizer.drain()
        assert sorted(optimizer.push_sum.memory.tensors) == ["late", "p"]
        torch.testing.assert_close(model.p.detach(), torch.full((3,), (size - 1) / 2), rtol=1e-3, atol=1e-3)
        assert model.late.tolist() == [0.0, -INF, -INF]
        assert optimizer.stats()["chunks_skipped"] == 0


def refused(said, **options):
    try:
        wrap(make(), **(options if rank == 1 else {}))
    except MismatchError as error:
        assert said in str(error), error
    else:
        raise AssertionError(f"rank {rank} was not told that {options} differ")


refused(f"buffers is 'average' on ranks 0, {size - 1}, 'gossip' on rank 1", buffers="gossip")
refused("PushSumOptimizer(within_host='gradients')", within_host="gradients")
print(f"rank {rank} of {size}: ok")
