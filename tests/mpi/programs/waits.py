"""Calls that not every rank makes: python waits.py HOW."""

import os
import sys
import time
from pathlib import Path

import numpy as np

import pushsum_opt as ps
from pushsum_opt import local
from pushsum_opt.collectives import averaged
from pushsum_opt.job import ending, world
from pushsum_opt.transport.roll_call import RollCall

how = sys.argv[1]
rank, size = ps.rank(), ps.size()


def exchange():
    return ps.PushSum([np.zeros(3)], graph=ps.graphs.Ring(), timeout=60.0)


def caught(call):
    """Say the error of a call and go on, so that every rank's can be seen."""
    try:
        call()
    except ps.PushSumError as error:
        print(f"rank {rank} caught {type(error).__name__}: {error}", flush=True)


def leave():
    """End all, once the others have seen their errors too."""
    everyone = world.communicator().Ibarrier()
    deadline = time.monotonic() + 20.0
    while not everyone.Test() and time.monotonic() < deadline:
        time.sleep(0.01)
    ending.abort(RuntimeError("this is all"))


if how == "first":  # rank 0 alone makes a channel; the others end
    if rank == 0:
        ps.average(1.0)
elif how == "busy":  # ... or compute for longer than rank 0 waits
    if rank == 0:
        ps.PushSum([np.zeros(1)], timeout=4.0)
    time.sleep(30.0)
elif how == "crossed":  # different calls make the first channel
    caught((lambda: ps.average(1.0)) if rank == 0 else exchange)
    leave()
elif how == "ended":  # rank 0 alone calls on a channel that is there, while the others close and end
    ps.average(1.0)
    push_sum = exchange()
    if rank == 0:
        ps.average(0.5)
elif how == "steps":  # rank 0 alone evaluates while the others train
    push_sum = exchange()
    push_sum.mix()

    def go_on():
        if rank == 0:
            with averaged(push_sum):
                pass
        for _ in range(4):
            push_sum.mix()

    caught(go_on)
    leave()
elif how == "chain":  # rank 0 stays in a span until the last rank has said why it waits
    said = Path(sys.argv[3])
    asked = []
    answer = RollCall.answer
    RollCall.answer = lambda roll, question: (asked.append(question), answer(roll, question))[1]

    class Says(ps.Listener):
        def stalled(self, seconds, what):
            if "forward" in what:
                said.touch()

    with ps.PushSum([np.zeros(3)], graph=ps.graphs.Ring(), staleness=int(sys.argv[2]), timeout=40.0) as push_sum:
        if rank == size - 1:
            push_sum.subscribe(Says())
        push_sum.mix()
        while rank == 0 and not asked:
            with ps.observe.span("loading"):
                time.sleep(0.05)
        if rank == 0:
            with ps.observe.span("forward"):
                while not said.exists():
                    time.sleep(0.05)
        for _ in range(8):
            push_sum.mix()
    print(f"rank {rank} of {size}: ok", flush=True)
elif how == "late":  # a rank that computes for long, and never waits afterwards, was asked meanwhile
    with exchange() as push_sum:
        push_sum.mix()
        time.sleep(1.2 if rank == 1 else 0.0)
        push_sum.mix()
    print(f"rank {rank} of {size}: ok", flush=True)
elif how == "fine":
    from mpi4py import MPI

    # Slow ranks, and a user's own receives from anybody with any tag: no question of ours may be left for them.
    time.sleep(1.5 if rank == 1 else 0.0)
    push_sum = exchange()
    if rank == 0:
        for other in range(1, size):
            MPI.COMM_WORLD.send("mine", dest=other, tag=5)
    else:
        assert MPI.COMM_WORLD.recv() == "mine"
    assert MPI.COMM_WORLD.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG) is False
    time.sleep(1.2 if rank == 0 else 0.0)
    assert ps.average(float(rank)) == (size - 1) / 2
    half = MPI.COMM_WORLD.Split(rank % 2)
    assert ps.average(1.0, comm=half) == 1.0
    half.Free()
    for variable in (*local.RANK_VARIABLES, *local.SIZE_VARIABLES):
        os.environ.pop(variable, None)
    assert (ps.local_rank(), ps.local_size()) == (rank, size)
    push_sum.close()
    print(f"rank {rank} of {size}: ok", flush=True)
    if "finalize" in sys.argv and rank == 0:
        MPI.Finalize()
    elif "finalize" in sys.argv:
        time.sleep(1.0)
    elif rank == 1:
        time.sleep(2.0)  # the others answer, and wait
