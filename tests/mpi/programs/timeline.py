"""Writes a timeline of 12 rounds into the folder that argv names; rank 1 may kill itself: timeline.py DIR [killed]."""

import os
import signal
import sys
import time

import numpy as np

import pushsum_opt as ps

folder, *how = sys.argv[1:]
rank = ps.rank()


def crooked():
    """The clock of another host: minutes apart, and at another pace."""
    return 300.0 * rank + time.monotonic() * (1 + 1e-4 * rank)


with ps.PushSum([np.full(1_000_000, float(rank))], graph=ps.graphs.Ring()) as push_sum:
    ps.observe.Timeline(push_sum, folder, clock=crooked)
    for step in range(12):
        with ps.observe.span("forward"):
            time.sleep(0.002)
        push_sum.mix()
        if how and rank == 1 and step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
print(f"rank {rank} of {ps.size()}: ok", flush=True)
