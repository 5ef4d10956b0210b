"""A run whose rank 1 is killed once, in step 10: python restarted.py FOLDER STEPS.

Each rank writes what it ends with to FOLDER/end-R: how often its torchrun has seen a rank fail, the step at which it
began, its push weight, and a digest of all bits.
"""

import os
import signal
import sys
from pathlib import Path

from optimizer.common import KINDS, bits, closure_of, network, star, values

import pushsum_opt as ps

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
restarts, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), ps.rank()
model = network()
optimizer = ps.PushSumOptimizer(KINDS["SGD"](model.parameters(), lr=0.01), model, graph=star)
saver = ps.checkpoint.Saver(folder / "checkpoints", optimizer, every=4)
begin = (saver.resume() or {"step": 0})["step"]
for step in range(begin, steps):
    optimizer.step(closure_of(model, step, rank))
    if step == 10 and rank == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    saver.after_step(step=step + 1)
optimizer.close()
digest = b"".join(bits(values(model))).hex()
(folder / f"end-{rank}").write_text(f"{restarts} {begin} {optimizer.push_weight!r} {digest}")
