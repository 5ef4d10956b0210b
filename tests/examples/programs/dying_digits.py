"""The digits example, in which rank 2 is killed in the third epoch; not a spare that has taken its place."""

from __future__ import annotations

import itertools
import os
import runpy
import signal
from pathlib import Path

import pushsum_opt as ps

IN_EPOCH_3 = 50  # of 22 steps in an epoch
steps, step, me = itertools.count(1), ps.PushSumOptimizer.step, os.environ["OMPI_COMM_WORLD_RANK"]


def dying(optimizer, *args, **kwargs):
    if next(steps) == IN_EPOCH_3 and me == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(optimizer, *args, **kwargs)


ps.PushSumOptimizer.step = dying
runpy.run_path(str(Path(__file__).parents[3] / "examples" / "digits.py"), run_name="__main__")
