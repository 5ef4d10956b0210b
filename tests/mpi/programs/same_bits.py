"""Prints the digest of every rank's training: python same_bits.py [--naps SEED] [--staleness TAU]."""

import argparse

from mpi4py import MPI
from scenarios import numpy_training

parser = argparse.ArgumentParser()
parser.add_argument("--naps", type=int)
parser.add_argument("--staleness", type=int, default=0)
arguments = parser.parse_args()
comm = MPI.COMM_WORLD
digest, weight = numpy_training(comm, sleepy=arguments.naps, staleness=arguments.staleness)
digests = comm.gather((digest, weight))
if comm.rank == 0:
    for rank, (text, w) in enumerate(digests):
        print(f"digest {rank} {text} {w!r}")
print(f"rank {comm.rank} of {comm.size}: ok")
