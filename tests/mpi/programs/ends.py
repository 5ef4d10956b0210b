"""Ways in which a program and its children end: python ends.py HOW."""

import gc
import os
import signal
import sys

how = sys.argv[1]
if how == "started by us":
    import mpi4py

    mpi4py.rc.initialize = False

import torch  # noqa: E402
from mpi4py import MPI  # noqa: E402

import pushsum_opt as ps  # noqa: E402


def train(staleness, **more):
    model = torch.nn.Linear(4, 1)
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, staleness=staleness, **more)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return optimizer


def end_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forks(directory):
    optimizer = train(1, timeout=60.0)
    saver = ps.checkpoint.Saver(directory, optimizer)
    for wanted in (0, 3, 1, -signal.SIGTERM):
        child = os.fork()
        if child == 0:
            if wanted == 1:
                raise RuntimeError("only in the child")
            if wanted < 0:
                os.kill(os.getpid(), signal.SIGTERM)
            try:
                ps.average(1.0)
            except ps.errors.LaunchError as error:
                assert "was made by a fork of rank" in str(error)
                sys.exit(wanted)
        assert end_of(child) == wanted, wanted
        optimizer.step()
    saver.close()


def drops():
    """main() of a script for DDP: no close(), two optimizers, and garbage collected on one rank only."""
    train(0, timeout=20.0)
    train(1, timeout=20.0)
    if ps.rank() == 0:
        gc.collect()


def finalizes():
    optimizer = train(1, timeout=20.0)
    for _ in range(3):  # a handle that is used again must not find the channel of the communicator before
        part = MPI.COMM_WORLD.Split(0, 0)
        assert ps.average(float(part.rank), comm=part) == (part.size - 1) / 2
        part.Free()
        pair = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank // 2, 0)
        assert ps.average(1.0 + pair.rank // 2, comm=pair) == 1.0
        pair.Free()
    MPI.Finalize()
    assert optimizer.push_sum.closed
    assert (ps.rank(), ps.size()) == place
    try:
        train(0)
    except ps.errors.LaunchError as error:
        assert "MPI.Finalize() was called" in str(error)


def forks_first():
    """MPI has started, and nothing here was called yet."""
    child = os.fork()
    if child == 0:
        exit(5)
    assert end_of(child) == 5


if how == "forks":
    forks_first()
place = ps.rank(), ps.size()
if how == "forks":
    forks(sys.argv[2])
elif how == "finalizes":
    finalizes()
else:
    drops()
print(f"rank {place[0]} of {place[1]}: ok", flush=True)
