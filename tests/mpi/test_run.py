"""What ``pushsum run`` starts: which cores a rank sees, and that it starts without a home."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.mpi

SEES = "import json, os; print(json.dumps([len(os.sched_getaffinity(0)), os.environ.get('HOME'), os.environ['MINE']]))"


def test_single_rank_with_one_thread_sees_all_cores_and_a_home_though_none_was_set():
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MINE": "here"}
    environ.pop("HOME", None)
    done = subprocess.run(
        [sys.executable, "-m", "pushsum_opt", "run", "-np", "1", "python", "-c", SEES],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    cores, home, mine = json.loads(done.stdout)
    assert cores == len(os.sched_getaffinity(0))
    assert home is not None
    assert os.path.isdir(home)
    assert mine == "here"
