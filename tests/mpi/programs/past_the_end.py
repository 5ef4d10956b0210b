"""Rank 0 has passed the last barrier and ends; rank 1 has not yet when rank 2 is killed. Argument: a folder."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

import pushsum_opt as ps
from pushsum_opt.errors import RanksLost

dying = Path(sys.argv[1]) / "dying"
me = ps.rank()
push_sum = ps.PushSum([np.full(10, float(me))], on_loss="continue", timeout=60)
push_sum.mix()
survival = push_sum.member.survival
passes = survival._all_have_done_it


def passes_not() -> None:
    passes()
    while not dying.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    raise RanksLost("as where MPI has ended the barrier on other ranks, and not on this one")


if me == 1:
    survival._all_have_done_it = passes_not
push_sum.close()
if me == 2:
    time.sleep(0.5)  # rank 0 ends meanwhile
    dying.touch()
    os.kill(os.getpid(), signal.SIGKILL)
print(f"rank {me} of 3: closed, {push_sum.losses}", flush=True)
