"""A run without an end that can be told to stop: python stopped.py FOLDER. It writes its exit code to FOLDER/code-R."""

import sys
import time
from pathlib import Path

import torch

import pushsum_opt as ps

folder, rank = Path(sys.argv[1]), ps.rank()
model = torch.nn.Linear(3, 2)
optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.01), model)
saver = ps.checkpoint.Saver(folder / "checkpoints", optimizer, check_every=2)
step = 0
try:
    while True:
        optimizer.step()
        step += 1
        time.sleep(0.01)
        if step == 3:
            (folder / f"started-{rank}").touch()
        saver.after_step(step=step)
except SystemExit as end:
    (folder / f"code-{rank}").write_text(str(end.code))
    raise
