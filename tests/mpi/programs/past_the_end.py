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

dying, closed = (Path(sys.argv[1]) / name for name in ("dying", "closed"))
me = ps.rank()
push_sum = ps.PushSum([np.full(10, float(me))], on_loss="continue", timeout=300)
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
if me == 0:
    closed.touch()
if me == 2:
    while not closed.exists():
        time.sleep(0.01)
    time.sleep(0.5)  # rank 0 ends meanwhile; it does not matter how far it comes
    dying.touch()
    os.kill(os.getpid(), signal.SIGKILL)
print(f"rank {me} of 3: closed, {push_sum.losses}", flush=True)
