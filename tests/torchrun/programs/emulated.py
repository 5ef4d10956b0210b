"""A training over torch.distributed with tensors on an emulated device: python emulated.py {nccl,staged} STALENESS.

NCCL's place is taken by a connection that reads and writes the memory of the emulated device itself.
"""

import hashlib
import sys

from memory.emulated import EmulatedDevice, EmulatedMemory
from memory.test_staging import training
from torchrun import fake_nccl

import pushsum_opt as ps
from pushsum_opt import memory as memories
from pushsum_opt.job import world


class Device(EmulatedDevice):
    def wire(self, memory):
        return fake_nccl.device_bytes(memory.numpy(), self)


def bind(tensors, names, wire, chunk_bytes, **others):
    device = Device(seed=comm.rank, eager=0.2)
    return EmulatedMemory(tensors, names, wire, chunk_bytes, device=device, direct=sys.argv[1] == "nccl")


memories.bind = bind
nccl = fake_nccl.use()
comm = world.communicator()
staleness = sys.argv[2] if sys.argv[2] == "unbounded" else int(sys.argv[2])
bits, weight = training(comm, staleness=staleness, wire="bfloat16")
assert bool(nccl.made) == (sys.argv[1] == "nccl")
assert not any(connection.aborted for connection in nccl.made)
print(f"digest {comm.rank} {hashlib.sha256(b''.join(bits)).hexdigest()} {weight!r}")
assert abs(ps.sum(weight) - comm.size) < 1e-12 * comm.size
print(f"rank {comm.rank} of {comm.size}: ok")
