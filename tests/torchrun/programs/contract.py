"""Every rank runs the transport's contract over torch.distributed."""

from transport.contract import CONTRACT

from pushsum_opt.job import world

comm = world.communicator()
for promise in CONTRACT:
    promise(comm)
print(f"rank {comm.rank} of {comm.size}: ok")
