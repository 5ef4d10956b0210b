"""A job that is told to stop saves, exits with 75 on all ranks, and goes on with the same bits when started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from mpi.launch import environment, launcher, mpirun, script
from support.started import ROOT

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

SIZE = 3
SECONDS = 240


def stop(folder, staleness, *, by_pushsum_run=False, to_one_rank=False):
    """Start a run without an end, send it SIGUSR1 once every rank has taken some steps, and return its exit code."""
    start = [sys.executable, "-m", "pushsum_opt", "run"] if by_pushsum_run else launcher()
    words = script("preempted.py", str(folder), str(staleness), "endless")
    child = subprocess.Popen(
        [*start, "-np", str(SIZE), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
    )
    files = [folder / f"started-{rank}" for rank in range(SIZE)]
    try:
        deadline = time.monotonic() + SECONDS
        while not all(file.exists() for file in files) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert all(file.exists() for file in files), "the ranks did not start"
        os.kill(int(files[1].read_text()) if to_one_rank else child.pid, signal.SIGUSR1)
        output, _ = child.communicate(timeout=SECONDS)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        print(child.communicate()[0])
        raise
    print(output)
    for file in files:
        file.unlink()
    return child.returncode


def run(folder, staleness, steps):
    """Run to the end, from where a checkpoint says; return (first step, push weight, digest) of every rank."""
    folder.mkdir(exist_ok=True)
    done = mpirun(SIZE, "preempted.py", str(folder), str(staleness), str(steps), limit=SECONDS)
    assert done.returncode == 0, done.stdout[-4000:]
    return [tuple((folder / f"end-{rank}").read_text().split()) for rank in range(SIZE)]


def rounds(folder):
    """Return the rounds of every rank in every checkpoint."""
    return [json.loads(path.read_text())["rounds"] for path in sorted(folder.glob("checkpoints/*/manifest.json"))]


@pytest.mark.parametrize("staleness", [0, 2])
def test_sigusr1_to_mpirun_saves_one_round_exits_with_75_and_resumes_with_the_same_bits(tmp_path, staleness):
    assert stop(tmp_path, staleness) == 75
    (saved,) = rounds(tmp_path)
    assert len(set(saved)) == 1
    resumed = run(tmp_path, staleness, saved[0] + 5)
    undisturbed = run(tmp_path / "undisturbed", staleness, saved[0] + 5)
    assert {int(begin) for begin, *_ in resumed} == {saved[0]}
    assert {int(begin) for begin, *_ in undisturbed} == {0}
    assert [rest for _, *rest in resumed] == [rest for _, *rest in undisturbed]


def test_sigusr1_to_one_rank_is_enough_and_the_run_that_goes_on_can_be_stopped_again(tmp_path):
    assert stop(tmp_path, 1, to_one_rank=True) == 75
    assert stop(tmp_path, 1, to_one_rank=True) == 75
    first, second = rounds(tmp_path)
    assert first[0] + 3 <= second[0]


def test_pushsum_run_passes_the_signal_on_and_the_code_back(tmp_path):
    assert stop(tmp_path, 0, by_pushsum_run=True) == 75
    assert len(rounds(tmp_path)) == 1


def test_asynchronous_ranks_stop_and_go_on_with_all_mass(tmp_path):
    assert stop(tmp_path, "unbounded") == 75
    (saved,) = rounds(tmp_path)
    resumed = run(tmp_path, "unbounded", max(saved) + 3)
    assert [int(begin) for begin, *_ in resumed] == saved
    assert sum(float(weight) for _, weight, _ in resumed) == pytest.approx(SIZE, rel=1e-12)
