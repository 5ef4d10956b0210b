"""Every rank runs the transport's contract over MPI.COMM_WORLD."""

import numpy  # before MPI, so that its threads are made first
from mpi4py import MPI
from transport.contract import CONTRACT

from pushsum_opt.transport.mpi import MpiTransport

comm = MPI.COMM_WORLD
for promise in CONTRACT:
    promise(comm)

alone = MpiTransport(MPI.COMM_SELF)  # how long it polls often depends on the bytes
ticket = alone.expect(numpy.empty(1000, numpy.float32), 0, 0, "no message")
assert alone.bytes_under_way == 4000
alone.cancel(ticket)
assert alone.bytes_under_way == 0
alone.close()
print(f"rank {comm.rank} of {comm.size}: ok")
