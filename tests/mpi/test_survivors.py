"""Over real MPI ranks are killed, or raise, and the others go on."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from mpi.launch import each_rank, environment, fault_tolerant, script
from mpi.needs import needs_fault_tolerance
from support.started import ROOT

pytestmark = pytest.mark.mpi


@needs_fault_tolerance
@pytest.mark.parametrize(
    ("staleness", "how", "dying", "left"),
    [
        ("0", "killed", "2", (0, 1, 3)),
        ("1", "killed", "0,3", (1, 2)),
        ("unbounded", "killed", "1", (0, 2, 3)),
    ],
)
def test_survivors_go_on(staleness, how, dying, left):
    done = fault_tolerant(4, "survivors.py", staleness, how, dying, limit=100)
    assert done.returncode == 0, done.stdout[-5000:]
    lost = tuple(int(rank) for rank in dying.split(","))
    assert done.stdout.count(f"round 40, members {left}, lost {lost}") == len(left), done.stdout[-5000:]


def test_where_mpi_cannot_go_on_is_said_at_construction():
    done = each_rank(2, "survivors.py", "0", "killed", "1", limit=60)
    assert done.returncode != 0
    assert re.search(r"ConfigurationError: rank [01]: on_loss='continue': ", done.stdout)  # whoever ends the job first
    assert "pushsum run --survive -np 2" in done.stdout


@needs_fault_tolerance
@pytest.mark.parametrize("staleness", ["1", "unbounded"])
def test_survivors_save_join_and_stop_together(staleness, tmp_path):
    (tmp_path / "memory").mkdir()
    done = fault_tolerant(4, "surviving_loops.py", str(tmp_path), staleness, limit=100)
    assert done.returncode == 75, done.stdout[-5000:]
    assert done.stdout.count("members (0, 3), kept []") == 2, done.stdout[-5000:]
    newest = max((tmp_path / "disk").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    assert json.loads(newest.read_text())["size"] == 2


@needs_fault_tolerance
def test_pushsum_run_returns_1_where_every_rank_has_died():
    program = script("survivors.py", "0", "killed", "0,1")
    done = subprocess.run(
        [sys.executable, "-m", "pushsum_opt", "run", "--survive", "-np", "2", *program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert "exit code 0, but no rank on this host has come to its end" in done.stderr


@needs_fault_tolerance
def test_nobody_waits_for_a_rank_that_knows_that_all_is_over_and_has_ended(tmp_path):
    done = fault_tolerant(3, "past_the_end.py", str(tmp_path), limit=200)  # less than the timeout of the ranks
    assert done.returncode == 0, done.stdout[-5000:]
    assert done.stdout.count("closed, []") == 2, done.stdout[-5000:]


@needs_fault_tolerance
def test_survivors_of_twenty_faults_at_random_moments_agree_and_hold_all_the_mass():
    chaos = ROOT / "examples" / "benchmarks" / "chaos.py"
    done = subprocess.run(
        [sys.executable, str(chaos), "--faults", "20", "--limit", "100"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "20 faults survived in 2 jobs" in done.stdout
