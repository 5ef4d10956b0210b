"""A rank is killed in a loop with a Saver, then one in a block of uneven batches; at last all stop and save.

Arguments: a folder, and the mode.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

import pushsum_opt as ps

folder = Path(sys.argv[1])
staleness = sys.argv[2] if sys.argv[2] == "unbounded" else int(sys.argv[2])
me = ps.rank()
z = torch.full((20_000,), float(me), requires_grad=True)
optimizer = ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.01), staleness=staleness, on_loss="continue", timeout=60)


def step(dies: bool) -> None:
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    z.grad = torch.ones_like(z)
    optimizer.step()


options = {"memory_every": 4, "memory_directory": folder / "memory", "memory_limit": 1.0, "check_every": 2}
with ps.checkpoint.Saver(folder / "disk", optimizer, every=10, **options) as saver:
    for k in range(30):
        step(dies=me == 2 and k == 15)
        saver.after_step(step=k + 1)
with optimizer.join():
    for k in range(40 if me == 1 else 10 + 5 * me):
        step(dies=me == 1 and k == 30)
optimizer.drain()
mass = ps.sum(optimizer.push_weight)
assert abs(mass - optimizer.size) < 1e-12, mass
print(f"members {optimizer.members}, kept {sorted(path.name for path in (folder / 'memory').iterdir())}", flush=True)
saver = ps.checkpoint.Saver(folder / "disk", optimizer, check_every=2)
for k in range(100_000):  # none ends by itself before the slowest rank asks
    step(dies=False)
    if me == 3 and k == 4:
        saver.request_stop()
    saver.after_step(step=k + 1)
