"""What the page "When a rank dies" says of each kind of death is what happens."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from mpi import launch
from mpi.deaths import DEATHS, Others, table
from mpi.launch import HERE
from mpi.needs import needs_fault_tolerance
from mpi.test_restarts import AGENT
from mpi.test_run import namespaces
from support.started import ROOT

import pushsum_opt as ps
from pushsum_opt.collectives import averaged
from pushsum_opt.testing import Faults, Moment

PAGE = (ROOT / "docs" / "rank-loss.md").read_text(encoding="utf-8")
ONE_AFTER_THE_OTHER = {
    "rank 0": (1, 2, 3, 4, 5, 6, 7), "crashes": (2, 3, 4, 5, 6, 7), "raises": (3, 4, 5, 6, 7), "memory": (4, 5, 6, 7),
    "two": (6, 7), "last": (7,),
}  # fmt: skip


def pushsum_run(folder, size, program, *arguments, survive=True, options=(), limit=120):
    """Run a program; return the exit code, what the launcher said, and what each rank has written."""
    words = [*(["--survive"] if survive else []), "-np", str(size), *options, "--"]
    done = subprocess.run(
        [sys.executable, "-m", "pushsum_opt", "run", *words, sys.executable, str(HERE / "programs" / program),
         str(folder), *arguments],
        env=launch.environment(UCX_TLS="tcp,self", PYTHONUNBUFFERED=""),  # so that a line is written as one piece
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        cwd=ROOT,
    )  # fmt: skip
    said = {int(file.name): file.read_text() for file in folder.iterdir() if file.name.isdigit()}
    return done.returncode, done.stdout + done.stderr, said


@pytest.fixture(scope="session")
def one_after_the_other(tmp_path_factory):
    return pushsum_run(tmp_path_factory.mktemp("deaths"), 8, "deaths.py", "one after the other")


@pytest.mark.mpi
@needs_fault_tolerance
@pytest.mark.parametrize("key", [*ONE_AFTER_THE_OTHER, "killed"])
def test_survivors_of_each_of_these_deaths_go_on(key, one_after_the_other):
    code, output, said = one_after_the_other
    assert DEATHS[key].others is Others.GO_ON
    assert DEATHS[key].code == code, output[-4000:]
    expected = ONE_AFTER_THE_OTHER["rank 0" if key == "killed" else key]
    line = f"{'rank 0' if key == 'killed' else key}: {expected}\n"
    assert [rank for rank, text in sorted(said.items()) if line in text] == list(expected), output[-4000:]
    assert said[7].endswith("the end\n")
    if key in ("raises", "memory"):
        left = "rank 2" if key == "raises" else "rank 3"
        assert f"{left} failed with the error above; the others go on without it" in output


@pytest.mark.mpi
@needs_fault_tolerance
@pytest.mark.parametrize(
    ("key", "others", "error"),
    [
        ("library", Others.END, r"NonFiniteError: rank 1: on purpose"),
        ("sys.exit", Others.END, r"PeerFinished: rank [02]: rank 1 "),
        ("os._exit", Others.WAIT, r"PeerTimeout: rank [02]: waited [\d.]+ s for rank 1: "),
    ],
)
def test_the_others_end_after_each_of_these(key, others, error, tmp_path):
    code, output, said = pushsum_run(tmp_path, 3, "deaths.py", key)
    assert (DEATHS[key].others, DEATHS[key].code) == (others, code), output[-4000:]
    assert said == {}
    assert re.search(error, output), output[-4000:]


@pytest.mark.mpi
@needs_fault_tolerance
def test_a_rank_that_is_stopped_is_not_lost_and_after_the_timeout_all_end_with_its_name(tmp_path):
    code, output, _ = pushsum_run(tmp_path, 4, "stopped.py")
    assert output.count("slow is not dead, lost []") == 4, output[-5000:]
    assert DEATHS["slow"].others is Others.GO_ON_WITH_IT
    assert DEATHS["stopped"].others is Others.WAIT
    assert DEATHS["stopped"].code == code
    assert re.search(r"PeerTimeout: rank \d: waited [\d.]+ s for rank 2: ", output), output[-5000:]
    assert "is lost" not in output


@pytest.mark.mpi
@pytest.mark.parametrize("what", [pytest.param("host", marks=needs_fault_tolerance), "host, stop"])
def test_a_host_that_is_lost_ends_the_job_and_pushsum_run_says_so(what, tmp_path):
    if namespaces() is not None:
        pytest.skip(namespaces())
    agent = tmp_path / "agent"
    agent.write_text(AGENT.format(folder=tmp_path))
    agent.chmod(0o755)
    here = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    if "--oversubscribe" in launch.launcher():
        options = ["--host", f"{here}:2,another:2", "--prtemca", "plm_ssh_agent", str(agent)]
    else:
        options = ["-hosts", f"{here}:2,another:2", "-launcher-exec", str(agent)]
    code, output, said = pushsum_run(tmp_path, 4, "deaths.py", what, survive=what == "host", options=options)
    assert said == {}, output[-4000:]
    assert DEATHS["host"].others is Others.ARE_ENDED
    assert code != 0, output[-4000:]
    if "--oversubscribe" in launch.launcher():
        assert DEATHS["host"].code == code
        assert "pushsum run: mpirun ended with exit code 0, but " in output


IN_CALLS = {
    "construction": Moment(call="PushSum", count=5),
    "round": Moment(call="mix()", what="chunk", operation="post", count=3),
    "exact": Moment(call="an exact average", count=3),
    "averaged": Moment(call="averaged()", count=3),
    "recovery": Moment(call="recovery", count=3),
    "close": Moment(call="close()", count=2),
}


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("key", IN_CALLS)
def test_survivors_of_a_death_in_each_of_these_calls_go_on(key, staleness):
    assert (DEATHS[key].others, DEATHS[key].code) == (Others.GO_ON, None)
    faults = Faults({1: IN_CALLS[key]} | ({3: Moment(call="mix()", count=9)} if key == "recovery" else {}))

    def rank(comm):
        push_sum = ps.PushSum([np.zeros(3)], comm=comm, staleness=staleness, on_loss="continue", timeout=30)
        for _ in range(6):
            push_sum.mix()
        push_sum.average()
        with averaged(push_sum):
            pass
        push_sum.close()
        return push_sum.members

    said = ps.testing.run(4, rank, faults=faults, timeout=60)
    left = (0, 2) if key == "recovery" else (0, 2, 3)
    assert sorted(faults.died) == sorted({0, 1, 2, 3} - set(left))
    assert [said[one] for one in left] == [left] * len(left)


def test_every_row_of_the_table_has_a_test():
    proved = {*ONE_AFTER_THE_OTHER, "killed", *IN_CALLS, "library", "sys.exit", "os._exit", "slow", "stopped", "host"}
    assert proved == set(DEATHS)


def test_the_page_has_this_table():
    assert table() in PAGE, "run: python docs/draw_deaths.py"


@cache
def drawing():
    spec = importlib.util.spec_from_file_location("draw_deaths", ROOT / "docs" / "draw_deaths.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_drawing_the_table_again_changes_nothing():
    assert drawing().with_table(PAGE, table()) == PAGE
