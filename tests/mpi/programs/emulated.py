"""A training over real MPI with tensors on an emulated device: python emulated.py {direct,staged} STALENESS."""

import hashlib
import sys

from memory.emulated import EmulatedDevice, EmulatedMemory
from memory.test_staging import training
from mpi4py import MPI

from pushsum_opt import memory as memories

comm = MPI.COMM_WORLD


def bind(tensors, names, wire, chunk_bytes, **others):
    device = EmulatedDevice(seed=comm.rank, eager=0.2)
    return EmulatedMemory(tensors, names, wire, chunk_bytes, device=device, direct=sys.argv[1] == "direct")


memories.bind = bind
bits, weight = training(comm, staleness=int(sys.argv[2]), wire="bfloat16")
print(f"digest {comm.rank} {hashlib.sha256(b''.join(bits)).hexdigest()} {weight!r}")
print(f"rank {comm.rank} of {comm.size}: ok")
