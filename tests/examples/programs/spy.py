"""Runs an example on this rank and writes down what it did: python spy.py EXAMPLE FOLDER HOSTILE [its arguments].

The rank works in FOLDER/rank_R, so that whatever it writes can be told from what others write. Its output goes to
FOLDER/R.out and FOLDER/R.err, and the report to FOLDER/R.json. With HOSTILE=slurm the variables of a Slurm job are set.
"""

import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data._utils.fetch import _MapDatasetFetcher

import pushsum_opt as ps

TRAINING = 1437  # images; the others are for testing
example, folder, hostile, *arguments = sys.argv[1:]
rank, size = ps.rank(), ps.size()

if hostile == "slurm":
    os.environ |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}
    os.environ |= {"SLURM_NTASKS": str(size), "SLURM_NTASKS_PER_NODE": str(size)}
    os.environ |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}

fetchers, epochs = [], []  # what every pass over the training data asked for, batch by batch
fetch = _MapDatasetFetcher.fetch


def fetch_and_note(self, indices):
    if len(self.dataset) == TRAINING:
        if self not in fetchers:
            fetchers.append(self)
            epochs.append([])
        epochs[fetchers.index(self)].append([int(index) for index in indices])
    return fetch(self, indices)


steps = Counter()
optimizers, others = [], []
make = ps.PushSumOptimizer.__init__


def make_and_note(self, *args, **options):
    make(self, *args, **options)
    optimizers.append(self)


def noting(name, function):
    def note(*args, **options):
        others.append(name)
        return function(*args, **options)

    return note


_MapDatasetFetcher.fetch = fetch_and_note
ps.PushSumOptimizer.__init__ = make_and_note
register_optimizer_step_post_hook(lambda one, *_: steps.update([type(one).__name__]))
torch.distributed.init_process_group = noting("init_process_group", torch.distributed.init_process_group)
for parallel in (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel):
    parallel.__init__ = noting(parallel.__name__, parallel.__init__)

home = Path(folder, f"rank_{rank}")
home.mkdir(parents=True)
os.chdir(home)
for stream, name in ((1, "out"), (2, "err")):
    file = os.open(Path(folder, f"{rank}.{name}"), os.O_WRONLY | os.O_CREAT)
    os.dup2(file, stream)
sys.argv = [example, *arguments]
runpy.run_path(example, run_name="__main__")
report = {
    "epochs": epochs,
    "steps": steps,
    "rounds": [one.round for one in optimizers],
    "push_weights": [one.push_weight for one in optimizers],
    "others": others,
    "distributed": torch.distributed.is_initialized(),
}
Path(folder, f"{rank}.json").write_text(json.dumps(report))
