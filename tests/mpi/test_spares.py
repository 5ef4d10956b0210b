"""Over real MPI ranks are killed, and processes that waited take their places."""

from __future__ import annotations

import subprocess
import sys

import pytest
from mpi.launch import environment, fault_tolerant, launcher, script, succeeds

pytestmark = [
    pytest.mark.mpi,
    # The one launcher of these tests that takes --bind-to is Open MPI's.
    pytest.mark.skipif("--bind-to" not in launcher(), reason="MPICH ends the job when a rank dies"),
]


def check(done, told, times):
    assert done.returncode == 0, done.stdout[-5000:]
    assert done.stdout.count(told) == times, done.stdout[-5000:]


def test_a_spare_takes_the_place_of_a_lost_rank_and_one_that_calls_too_early_is_left_behind(tmp_path):
    done = fault_tolerant(4, "spares.py", str(tmp_path), "0", "2@10", "4!early", spares=3, limit=100)
    check(done, "members (0, 1, 2, 3), lost (2,), not replaced ()", 4)
    early = "CallOrderError: rank 2: ps.allgather() on a spare that the other ranks have not taken in yet"
    assert early in done.stdout
    assert "rank 4 failed with the error above; the others go on without it" in done.stdout
    assert "a spare has taken the place of rank 2, from round " in done.stdout


def test_two_spares_take_the_places_of_two_ranks_that_die_at_once(tmp_path):
    done = fault_tolerant(4, "spares.py", str(tmp_path), "1", "1@10", "2@10", spares=2, limit=100)
    check(done, "members (0, 1, 2, 3), lost (1, 2), not replaced ()", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["disk"], "what was in memory is removed"


def test_a_spare_takes_the_place_of_rank_0_in_an_asynchronous_job(tmp_path):
    done = fault_tolerant(4, "spares.py", str(tmp_path), "unbounded", "0@10", spares=1, limit=100)
    check(done, "members (0, 1, 2, 3), lost (0,), not replaced ()", 4)


def test_spares_that_die_while_they_wait_are_taken_in_or_train_are_followed_by_others(tmp_path):
    happens = ["2@10", "4!waiting", "5!load", "6@+3"]
    done = fault_tolerant(4, "spares.py", str(tmp_path), "0", *happens, spares=4, limit=100)
    check(done, "members (0, 1, 2, 3), lost (2, 2), not replaced ()", 4)


def test_without_a_saver_and_where_no_spare_is_left_the_others_go_on_with_fewer_ranks(tmp_path):
    done = fault_tolerant(3, "spares.py", str(tmp_path), "0", "1@10", "alone", "no-saver", spares=1, limit=100)
    check(done, "members (0, 2), lost (1,), not replaced (1,)", 2)
    assert "no spare can take the place: that needs exactly one optimizer that is open, with one" in done.stdout
    happens = ["0@10", "2@10", "3!waiting", "alone"]
    done = fault_tolerant(3, "spares.py", str(tmp_path), "0", *happens, spares=1, limit=100)
    check(done, "members (1,), lost (0, 2), not replaced (0, 2)", 1)
    assert "no spare is left to take the place" in done.stdout


def test_where_all_ranks_that_train_have_died_the_spares_end_with_1(tmp_path):
    program = script("spares.py", str(tmp_path), "0", "0@10", "1@10", "alone")
    done = subprocess.run(
        [sys.executable, "-m", "pushsum_opt", "run", "-np", "2", "--spares", "1", *program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert "spare 0: all ranks that trained have died" in done.stderr, done.stderr


def test_an_asynchronous_rank_that_closes_takes_in_the_spare_that_all_have_agreed_on(tmp_path):
    done = fault_tolerant(4, "spares.py", str(tmp_path), "unbounded", "1@10", "3!closes", spares=1, limit=100)
    check(done, "members (0, 1, 2, 3), lost (1,), not replaced ()", 4)
    assert (tmp_path / "asked").exists()


def test_a_spare_that_is_invited_again_while_it_answers_comes_to_the_second_invitation():
    succeeds(1, "invited_again.py")
