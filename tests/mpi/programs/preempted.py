"""A run that can be stopped and goes on: python preempted.py FOLDER TAU STEPS, with "endless" for no end.

Each rank writes its process id to FOLDER/started-R after three steps, and what it ends with to FOLDER/end-R: the step
at which it began, its push weight, and a digest of all bits.
"""

import hashlib
import os
import sys
import time
from pathlib import Path

import torch
from mpi4py import MPI
from optimizer.common import KINDS, bits, closure_of, network, star, values

import pushsum_opt as ps

folder = Path(sys.argv[1])
staleness = sys.argv[2] if sys.argv[2] == "unbounded" else int(sys.argv[2])
steps = None if sys.argv[3] == "endless" else int(sys.argv[3])
comm = MPI.COMM_WORLD
model = network()
inner = KINDS["SGD"](model.parameters(), lr=0.01)
optimizer = ps.PushSumOptimizer(inner, model, graph=star, staleness=staleness)
saver = ps.checkpoint.Saver(folder / "checkpoints", optimizer, check_every=2)
begin = step = (saver.resume() or {"step": 0})["step"]
while steps is None or step < steps:
    optimizer.step(closure_of(model, step, comm.rank))
    step += 1
    if steps is None:
        time.sleep(0.02)
        if step == begin + 3:
            file = folder / f"started-{comm.rank}"
            file.with_suffix(".new").write_text(str(os.getpid()))
            file.with_suffix(".new").rename(file)
    saver.after_step(step=step)
optimizer.close()
digest = hashlib.sha256(b"".join(bits(values(model))))
for state in optimizer.state.values():
    digest.update(b"".join(bits([value for value in state.values() if isinstance(value, torch.Tensor)])))
(folder / f"end-{comm.rank}").write_text(f"{begin} {optimizer.push_weight!r} {digest.hexdigest()}")
print(f"rank {comm.rank} of {comm.size}: ok")
