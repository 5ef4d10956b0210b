"""Ways in which a rank ends that others wait for: python endings.py HOW."""

import os
import signal
import sys
import time

import numpy as np

import pushsum_opt as ps

how = sys.argv[1]
rank, size = ps.rank(), ps.size()
last = size - 1
if how == "skips":  # all that takes time, and a first meeting, come before the short deadline
    ps.PushSum([np.zeros(1)]).close()
z = np.full(300_000, float(rank))
push_sum = ps.PushSum([z], graph=ps.graphs.Ring(), timeout=60.0 if how != "skips" else 3.0)
for k in range(6):
    if rank == last and k == 3:
        if how == "raises":
            raise ValueError("the disk of the last rank is full")
        if how == "finishes":
            push_sum.close()
            print("closed", flush=True)
            sys.exit(0)
        if how == "leaves":
            sys.exit(0)  # without close(): the end of the program closes it
        if how == "skips":
            time.sleep(30.0)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "swallows":
            try:
                raise OSError("lost")
            except OSError as error:
                push_sum.__exit__(OSError, error, None)
            time.sleep(5)
            sys.exit(0)
    push_sum.mix()
push_sum.close()
print(f"rank {rank} of {size}: ok", flush=True)
