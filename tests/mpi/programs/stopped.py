"""Rank 2 is stopped for a second, which is less than the timeout; then for good. Argument: a folder."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

import pushsum_opt as ps

pid = Path(sys.argv[1]) / "pid"
me = ps.rank()
everyone = ps.graphs.Complete()  # so that all wait for the one that is stopped, and not for one that waits for it
push_sum = ps.PushSum([np.full(1000, float(me))], graph=everyone, on_loss="continue", timeout=8)
if me == 2:
    pid.write_text(str(os.getpid()))
ps.barrier()


def stop(seconds: float) -> None:
    os.kill(int(pid.read_text()), signal.SIGSTOP)
    threading.Timer(seconds, os.kill, (int(pid.read_text()), signal.SIGCONT)).start()


if me == 0:
    stop(1.0)
begin = time.monotonic()
while True:
    push_sum.mix()
    if ps.sum(float(time.monotonic() - begin >= 1.5)):
        break
push_sum.drain()
print(f"rank {me}: slow is not dead, lost {push_sum.losses}", flush=True)
ps.barrier()
if me == 0:
    stop(60.0)
for _ in range(1000):
    push_sum.mix()
