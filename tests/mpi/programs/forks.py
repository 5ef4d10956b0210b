"""Each rank writes down the warnings of ways to start processes: python forks.py FOLDER DEVICES HOW...

Processes that started "before" did so before MPI, so it comes first where it comes at all.
"""

import json
import logging
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import pushsum_opt as ps


def load(how):
    """Start two workers, twice. A new Python takes seconds to import torch: one on rank 0 does, others do nothing."""
    if how == "spawn" or (how == "forkserver" and ps.rank() != 0):
        child = multiprocessing.get_context(how).Process(target=time.sleep, args=(0,))
        child.start()
        child.join()
        return
    import torch  # here, so that a child that needs none imports none
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.arange(8))
    workers, times = (1, 1) if how == "forkserver" else (2, 2)
    loader = DataLoader(data, batch_size=2, num_workers=workers, multiprocessing_context=how)
    assert [sum(int(x.sum()) for (x,) in loader) for _ in range(times)] == [28] * times


def start(how):
    """Start processes in some way while a push-sum is open, and another one is opened after it."""
    z = np.full(4, float(ps.rank()))
    with ps.PushSum([z]) as push_sum:
        if how == "programs":
            subprocess.run(["true"], check=True)
            subprocess.run("true", shell=True, check=True, cwd="/", start_new_session=True)
        elif how != "before":
            load(how)
        with ps.PushSum([z.copy()]) as another:  # a second transport watches no second time
            another.mix()
        push_sum.mix()


def main(folder, devices, *ways):
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.levelname, record.getMessage()))
    logging.getLogger("pushsum_opt").addHandler(handler)
    if "before" in ways:
        load("fork")
    from pushsum_opt.transport.mpi import fork  # this starts MPI

    fork.DEVICES = (devices,)
    found = {}
    for how in ways:
        start(how)
        found[how] = list(said)
        said.clear()
    rank, size = ps.rank(), ps.size()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    print(f"rank {rank} of {size}: ok\n", end="")


if __name__ == "__main__":  # "forkserver" and "spawn" import this file again
    main(*sys.argv[1:])
