"""How much of a core a rank uses while it waits: rank 1 sleeps 3 s before its round: python waiting.py TAU."""

import resource
import sys
import time

import numpy as np
from mpi4py import MPI

import pushsum_opt as ps

comm = MPI.COMM_WORLD
tau = int(sys.argv[1])
z = np.zeros(1000)
with ps.PushSum([z], graph=ps.graphs.Ring(), staleness=tau) as push_sum:
    for _ in range(tau + 1):
        push_sum.mix()
    comm.Barrier()
    if comm.rank == 1:
        time.sleep(3.0)
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    for _ in range(tau + 1):
        push_sum.mix()
    after, taken = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - begin
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(f"waited {comm.rank} {taken:.3f} {used / taken:.4f}")
print(f"rank {comm.rank} of {comm.size}: ok")
