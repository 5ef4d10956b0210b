"""Starts ranks on the one device and collects what they wrote.

`pushsum run` sets MPI up for GPU memory; torchrun starts those that exchange over torch.distributed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from mpi.launch import environment
from torchrun.launch import environment as without_launcher
from torchrun.launch import torchrun_command

from pushsum_opt import cuda_aware
from pushsum_opt.cli import ucx

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]
DIRECT, STAGED = "1", "0"  # as PUSHSUM_CUDA_AWARE has it
GLOO, NCCL = "gloo", "nccl"  # over torch.distributed


def ranks(size, program, *arguments, tmp_path, way, limit=500.0, **variables):
    """Run a program on ``size`` ranks and return what each wrote to its file, as JSON, in rank order."""
    if way == DIRECT:
        skip_unless_direct()
    folder = tmp_path / f"{program}-{way}-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    script = [str(PROGRAMS / program), str(folder), *arguments]
    if way in (GLOO, NCCL):
        command = torchrun_command(size, *script)
        environ = without_launcher(PUSHSUM_NCCL=str(int(way == NCCL)), **variables)
    else:
        command = [sys.executable, "-m", "pushsum_opt", "run", "-np", str(size), *script]
        environ = environment(PUSHSUM_CUDA_AWARE=way, **variables)
    try:
        done = subprocess.run(
            command,
            env=environ,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"{program} hung for {limit:g} s:\n{str(late.output)[-6000:]}") from None
    assert done.returncode == 0, done.stdout[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def skip_unless_direct():
    """Skip where this MPI has no CUDA and no UCX brings it. With the cuda extra GPU memory must work: then it fails."""
    why = _why_not_direct()
    if why and ucx.ucx_with_cuda() is None:
        pytest.skip(f"this MPI is built without CUDA, and the cuda12 or cuda13 extra is not installed: {why}")
    assert not why, f"the cuda extra is installed, and MPI still does not take GPU memory: {why}"


@cache
def _why_not_direct():
    folder = ucx.ucx_with_cuda()
    environ = dict(os.environ)
    if folder is not None:
        environ |= ucx.variables(folder, environ, all_of_it=True)
    found = cuda_aware.try_out(environ=environ)
    return found.get("error") or ("" if found.get("right") else "what came was not what was sent")
