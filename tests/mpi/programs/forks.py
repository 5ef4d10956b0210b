"""Each rank writes down the warnings of a way to start processes: python forks.py HOW FOLDER DEVICES."""

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
    """Start two workers, twice."""
    data = TensorDataset(torch.arange(8))
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=how)
    assert [sum(int(x.sum()) for (x,) in loader) for _ in range(2)] == [28, 28]


def main(how, folder, devices):
    fork.DEVICES = (devices,)
    rank, size = ps.rank(), ps.size()
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.levelname, record.getMessage()))
    logging.getLogger("pushsum_opt").addHandler(handler)
    if how == "before":
        load("fork")
    z = np.full(4, float(rank))
    with ps.PushSum([z]) as push_sum:
        if how == "programs":
            subprocess.run(["true"], check=True)
            subprocess.run("true", shell=True, check=True, cwd="/", start_new_session=True)
        elif how != "before":
            load(how)
        with ps.PushSum([z.copy()]) as another:  # a second transport watches no second time
            another.mix()
        push_sum.mix()
    Path(folder, f"{rank}.json").write_text(json.dumps(said))
    print(f"rank {rank} of {size}: ok\n", end="")


if __name__ == "__main__":  # "forkserver" and "spawn" import this file again
    main(*sys.argv[1:])
