"""Prints the digest of every rank's training: python same_bits.py [seed of the naps]."""

import sys

from mpi4py import MPI
from scenarios import numpy_training

comm = MPI.COMM_WORLD
digest, weight = numpy_training(comm, sleepy=int(sys.argv[1]) if len(sys.argv) > 1 else None)
digests = comm.gather((digest, weight))
if comm.rank == 0:
    for rank, (text, w) in enumerate(digests):
        print(f"digest {rank} {text} {w!r}")
print(f"rank {comm.rank} of {comm.size}: ok")
