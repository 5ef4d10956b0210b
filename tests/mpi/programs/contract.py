"""Every rank runs the transport's contract over MPI.COMM_WORLD."""

import numpy  # noqa: F401  (before MPI, so that its threads are made first)
from mpi4py import MPI
from transport.contract import CONTRACT

comm = MPI.COMM_WORLD
for promise in CONTRACT:
    promise(comm)
print(f"rank {comm.rank} of {comm.size}: ok")
