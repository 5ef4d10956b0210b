"""Hosts of two ranks, pretended, one of which loses rank 2. Arguments: the mode, and where it is killed."""

from __future__ import annotations

import os
import signal
import sys

import torch

import pushsum_opt as ps
from pushsum_opt.hosts import meeting
from pushsum_opt.wrapped import host_gradients

staleness, where = int(sys.argv[1]), sys.argv[2]
me = ps.rank()
model = torch.nn.Linear(40, 30)
inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
optimizer = ps.PushSumOptimizer(
    inner, model, within_host="gradients", staleness=staleness, on_loss="continue", timeout=60
)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


for step in range(40):
    if (me, step, where) == (2, 15, "backward"):
        assert host_gradients.meet is meeting.meet
        host_gradients.meet = die
    optimizer.zero_grad()
    model(torch.randn(8, 40)).square().mean().backward()
    if (me, step, where) == (2, 15, "step"):
        die()
    if step % 10 == 5:
        assert ps.average(1.0) == 1.0
    optimizer.step()
optimizer.drain()
lane = optimizer.push_sum.member.place.host.lane
for one in range(2):
    held = ps.sum(optimizer.push_weight if lane == one else 0.0)
    assert abs(held - optimizer.push_sum.participants) < 1e-12, held
with optimizer.averaged():
    mean = [parameter.sum().item() for parameter in model.parameters()]
assert len({tuple(one) for one in ps.allgather(mean)}) == 1
print(
    f"started as {me}: members {optimizer.members}, {optimizer.losses[0].ranks} lost, round {optimizer.round}",
    flush=True,
)
optimizer.close()
