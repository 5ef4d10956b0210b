"""NoLoCo and DiLoCo over real MPI, against their rules in numpy; a break in between leaves the bits as they are."""

import tempfile

import numpy as np
import torch
from mpi4py import MPI
from support.outer_steps import diloco, noloco

import pushsum_opt as ps
from pushsum_opt.algorithms import DiLoCo, NoLoCo

comm = MPI.COMM_WORLD
targets = np.random.default_rng(2).normal(size=(comm.size, 1000))


def trained(make, directory=None, **options):
    """Take 13 steps: three outer steps and one step more; with a directory, in two runs that break off in between."""
    for start, stop in ((0, 13),) if directory is None else ((0, 6), (6, 13)):
        z = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
        with ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.1), algorithm=make(), **options) as optimizer:
            if start:
                assert ps.checkpoint.load(directory, optimizer).exact
            for k in range(start, stop):
                if k == 12:
                    after_three = z.detach().numpy().copy()
                z.grad = z.detach() - torch.from_numpy(targets[comm.rank])
                optimizer.step()
            if stop < 13:
                ps.checkpoint.save(directory, optimizer)
    return after_three, z.detach().numpy()


def check(make, expected):
    after_three, end = trained(make)
    np.testing.assert_allclose(after_three, expected, rtol=1e-11, atol=1e-12)
    directory = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)
    np.testing.assert_array_equal(trained(make, directory)[1], end)
    rounded, _ = trained(make, wire_dtype="bfloat16")
    np.testing.assert_allclose(rounded, expected, atol=0.03)
    return rounded, after_three


rounded, exact = check(lambda: NoLoCo(4, 0.7, 0.5, 0.75), noloco(targets, 3, 4, 0.5, 0.7, 0.75)[-1][comm.rank])
assert comm.size == 1 or comm.allreduce(not np.array_equal(rounded, exact)), "nothing was rounded on the wire"
check(lambda: DiLoCo(4), diloco(targets, 3, 4, 0.7, 0.9)[-1])
print(f"rank {comm.rank} of {comm.size}: ok")
