"""The benchmark for GPUs says when there is none, and its script runs to the end on the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchrun.launch import torchrun_command
from warm.python import warm_python

ROOT = Path(__file__).parents[2]
SCRIPT = "examples/benchmarks/gpu.py"
BY_MPI = [sys.executable, "-m", "pushsum_opt", "run", "-np", "2", SCRIPT]


def run(*command):
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=400)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends():
    done = run(*warm_python(), SCRIPT)
    assert done.returncode == 1
    assert "needs a GPU" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize("launcher", ["MPI", "torchrun"])
def test_script_runs_to_its_end(tmp_path, launcher):
    figures = tmp_path / "figures.json"
    start = BY_MPI if launcher == "MPI" else torchrun_command(2, SCRIPT)
    done = run(*start, "--anyway", "--repeat", "1", "--json", str(figures))
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"copy", "pack", "merge", "gossip", "bare", "wrapped"} <= set(json.loads(figures.read_text())["median_ms"])
