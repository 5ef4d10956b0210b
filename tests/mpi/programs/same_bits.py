"""Prints the digest of every rank's training: python same_bits.py [--naps SEED] [--staleness TAU] [--threads LEVEL]."""

import argparse

import mpi4py
from support.scenarios import numpy_training

parser = argparse.ArgumentParser()
parser.add_argument("--naps", type=int)
parser.add_argument("--staleness", type=int, default=0)
parser.add_argument("--threads", choices=["funneled", "serialized", "multiple"], default="multiple")
arguments = parser.parse_args()
mpi4py.rc.thread_level = arguments.threads
from mpi4py import MPI  # noqa: E402  (MPI starts here, at the level asked for)

from pushsum_opt.transport.background import Background  # noqa: E402

movers = []
work = Background._work
Background._work = lambda transport: (movers.append(transport), work(transport))
comm = MPI.COMM_WORLD
digest, weight = numpy_training(comm, sleepy=arguments.naps, staleness=arguments.staleness)
digests = comm.gather((digest, weight))
if comm.rank == 0:
    for rank, (text, w) in enumerate(digests):
        print(f"digest {rank} {text} {w!r}")
provided = {MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized", MPI.THREAD_MULTIPLE: "multiple"}
level = provided[MPI.Query_thread()]
print(f"rank {comm.rank} of {comm.size}: ok at level {level}, messages moved by {len(movers)} threads")
