"""What the programs share: the rank, its device, sleeps on every stream, and a file for the results."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from pathlib import Path

import torch

import pushsum_opt as ps
from pushsum_opt.job import world

comm = world.communicator()
os.environ["NCCL_HOSTID"] = f"rank {comm.rank}"  # or NCCL refuses several ranks on one GPU
device = ps.local_device()


def report(**facts):
    """Write what this rank found; the test reads it."""
    memory = facts.pop("memory", None)
    if memory is not None:
        facts["memory"] = memory.name
    Path(sys.argv[1], f"{comm.rank}.json").write_text(json.dumps(facts))


def digest(tensors):
    """The bits of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def sleep_everywhere(memory, seed):
    """Sleep at random before every pass and copy, on the stream on which it stands.

    So packs are late when their buffers are posted, and merges are late when their slabs are received into again.
    """
    generator = random.Random(seed)
    accelerator = memory._device

    def late(work):
        def sleep_first(*arguments):
            with torch.cuda.stream(arguments[-1]):
                torch.cuda._sleep(generator.choice((0, 0, 10**5, 3 * 10**6)))
            work(*arguments)

        return sleep_first

    passes = ("pack", "check", "merge", "merge_half", "pack_coded", "check_coded", "merge_coded")
    for name in (*passes, "copy", "by_torch"):
        setattr(accelerator, name, late(getattr(accelerator, name)))
