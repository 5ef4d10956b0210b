"""Asynchronous ranks of different speeds and lengths: python free_running.py [stop | hold]."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
from mpi4py import MPI

import pushsum_opt as ps

how = sys.argv[1] if len(sys.argv) > 1 else ""
comm = MPI.COMM_WORLD
z = np.full(400_000, float(comm.rank))
random = np.random.default_rng(comm.rank)
push_sum = ps.PushSum([z], staleness="unbounded")
longest = 0.0
for k in range(40 + 10 * comm.rank):
    time.sleep(random.uniform(0, 0.01))
    if k == 10 and comm.rank == 1:
        if how == "stop":  # another process stops this one for 5 s, and continues it
            me = os.getpid()
            subprocess.Popen(["sh", "-c", f"kill -STOP {me}; sleep 5; kill -CONT {me}"])
            time.sleep(0.3)
        if how == "hold":  # the interpreter lock is held for 5 s: the thread of this rank cannot run
            interval = sys.getswitchinterval()
            sys.setswitchinterval(10.0)
            end = time.monotonic() + 5.0
            while time.monotonic() < end:
                pass
            sys.setswitchinterval(interval)
    begin = time.monotonic()
    push_sum.mix()
    longest = max(longest, time.monotonic() - begin)
    assert push_sum.push_weight >= 0.5 - 1e-12
push_sum.close()
mass = comm.allreduce(push_sum.push_weight)
mean = comm.allreduce(push_sum.push_weight * z.mean()) / comm.size
assert abs(mass - comm.size) < 1e-12 * comm.size, mass
assert abs(mean - (comm.size - 1) / 2) < 1e-10, mean
assert signal.getsignal(signal.SIGCONT) in (signal.SIG_DFL, None)
print(f"rank {comm.rank} of {comm.size}: ok, longest step {longest:.3f} s")
