"""How real ranks, their children and their tests end."""

from __future__ import annotations

import re

import pytest
from mpi.launch import HERE, run_apart, succeeds
from mpi.needs import needs_fault_tolerance
from warm.python import warm_python

pytestmark = pytest.mark.mpi


def test_forked_child_ends_as_it_would_in_plain_python_and_the_exchange_goes_on(tmp_path):
    said = succeeds(2, "forked.py", str(tmp_path))
    assert said.count("RuntimeError: only in the child") == 2
    assert said.count("a text") == 4


def test_forked_child_of_a_rank_that_trains_ends_by_itself_and_training_goes_on(tmp_path):
    said = succeeds(2, "ends.py", "forks", str(tmp_path))
    assert said.count("RuntimeError: only in the child") == 2
    assert "ending all ranks" not in said


@pytest.mark.parametrize("how", ["drops", "started by us"])
def test_script_without_close_ends_well_whatever_the_garbage_collector_did(how):
    # What MPI finds in a Python that has just started is part of what the second one is about.
    succeeds(2, "ends.py", how, warm=how == "drops")


def test_users_own_finalize_closes_what_is_open_first():
    succeeds(2, "ends.py", "finalizes")


def under_pytest(*more, options=()):
    words = ["-q", "--color=no", "-p", "no:cacheprovider", "-c", "/dev/null", *more]
    pytest_runs = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    program = str(HERE / "programs" / "under_pytest.py")
    return run_apart([*options, "-np", "2"], [*warm_python(), "-c", pytest_runs, *words, program], 150.0)


def test_test_that_fails_on_one_rank_fails_on_all_and_the_next_one_is_sound():
    done = under_pytest()
    assert done.returncode == 1, done.stdout[-6000:]
    # On rank 1 four fail, and one that is skipped there is reported as an error, because it fails on rank 0. On rank 0
    # four fail, and one that has passed there is reported as an error.
    assert re.search(r"^4 failed, 1 passed, 2 skipped, 1 error in", done.stdout, re.MULTILINE), done.stdout[-6000:]
    assert re.search(r"^4 failed, 3 passed, 1 error in", done.stdout, re.MULTILINE), done.stdout[-6000:]
    assert "rank 1 stopped: AssertionError: only here" in done.stdout
    waits = "rank 0: rank 1 does not come to PushSumOptimizer(...), in which this rank waits for it: "
    assert f"{waits}rank 1, in" in done.stdout
    assert f"{waits}it has come to the end of" in done.stdout
    assert "failed on another rank of this job" in done.stdout


@needs_fault_tolerance
def test_what_was_begun_to_be_set_up_in_a_test_is_made_where_a_job_outlives_its_ranks():
    """Ranks wait for each other before MPI makes a communicator: one has come there, and the other one has not."""
    done = under_pytest("-k", "skips or sound", options=["--with-ft", "ulfm"])
    assert re.search(r"^1 failed, 1 passed, 5 deselected in", done.stdout, re.MULTILINE), done.stdout[-6000:]
    assert re.search(r"^1 passed, 1 skipped, 5 deselected, 1 error in", done.stdout, re.MULTILINE), done.stdout[-6000:]
