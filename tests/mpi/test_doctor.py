"""``pushsum doctor`` beside a real MPI library, alone and as a job."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from mpi.launch import environment
from warm.python import warm_python

pytestmark = pytest.mark.mpi

COLD = (sys.executable, "-m", "pushsum_opt")


def warm() -> tuple[str, ...]:
    return (*warm_python(), "-c", "import sys; from pushsum_opt.cli import main; sys.exit(main())")


def doctor(*command: str, **variables: str) -> dict:
    done = subprocess.run(
        [*command, "doctor", "--json"],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=150,
    )
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return {one["name"]: one for one in report["findings"]} | {"ok": report["ok"]}


def test_this_environment_can_train():
    found = doctor(*COLD)
    assert found["ok"]
    assert found["Thread level"]["seen"] == "MULTIPLE"
    assert found["Launcher"]["status"] == "ok"


def test_job_is_reported_once_with_all_its_ranks():
    found = doctor(*COLD, "run", "-np", "3", *warm())
    assert found["ok"]
    assert found["Ranks"]["seen"] == "3"
    assert found["Hosts"]["seen"].endswith(": 3")
    assert "3 ranks here" in found["Cores"]["seen"]


def test_launcher_that_announces_more_ranks_than_mpi_sees_is_a_problem():
    found = doctor(*warm(), OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="0")
    assert not found["ok"]
    assert found["Ranks"]["seen"] == "OMPI_COMM_WORLD_SIZE=4, but MPI sees 1"
