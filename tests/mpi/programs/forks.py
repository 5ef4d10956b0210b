"""Each rank writes down the warnings of ways to start processes: python forks.py FOLDER DEVICES HOW...

Processes that started "before" did so before MPI, so it comes first where it comes at all.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import pushsum_opt as ps
from pushsum_opt.transport import fork


def load(how):
    """Start two workers, twice; where each is a new Python, one of them, once."""
    data = TensorDataset(torch.arange(8))
    workers, times = (1, 1) if how in ("forkserver", "spawn") else (2, 2)
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
    fork.DEVICES = (devices,)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.levelname, record.getMessage()))
    logging.getLogger("pushsum_opt").addHandler(handler)
    if "before" in ways:
        load("fork")
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
