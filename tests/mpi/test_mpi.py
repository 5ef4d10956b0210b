"""The same promises over real MPI: the transport's contract, the bits of a training, and every way to end."""

from __future__ import annotations

import re

import pytest
from mpi.launch import each_rank, environment, mpirun, succeeds, succeeds_among
from support.scenarios import numpy_training

from pushsum_opt import testing

pytestmark = pytest.mark.mpi

SMALL_CHUNKS = "PUSHSUM_CHUNK_BYTES=4096 same_bits.py"
OVERLAPPED = {tau: f"same_bits.py --staleness {tau} --naps 3" for tau in (1, 2)}
TOGETHER = {
    1: ["contract.py", "same_bits.py"],
    2: ["contract.py", "same_bits.py", *OVERLAPPED.values(), "waiting.py 0", "waiting.py 1"],
    3: ["contract.py", "same_bits.py", SMALL_CHUNKS, "free_running.py stop", "free_running.py hold"],
    4: ["same_bits.py", "same_bits.py --naps 1", "same_bits.py --naps 2", "free_running.py"],
    5: ["contract.py", "same_bits.py", *OVERLAPPED.values()],
}
"""What one start of mpirun runs, by its number of ranks."""
UNEVEN = [*(f"uneven.py {staleness}" for staleness in ("0", "2", "unbounded")), "buffers.py", "outer_steps.py"]


def among(size, program):
    return succeeds_among(TOGETHER[size], size, program)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_transport_contract(size):
    among(size, "contract.py")


def digests(output):
    return re.findall(r"digest \d+ (\w+) (\S+)", output)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_a_training_has_the_same_bits_as_on_loopback(size):
    expected = [(digest, repr(weight)) for digest, weight in testing.run(size, numpy_training)]
    assert digests(among(size, "same_bits.py")) == expected
    assert sum(float(weight) for _, weight in expected) == pytest.approx(size, rel=1e-13)


def test_two_runs_with_random_sleeps_have_the_same_bits():
    first, second = (digests(among(4, f"same_bits.py --naps {seed}")) for seed in (1, 2))
    assert len(first) == 4
    assert first == second


def test_small_chunks_change_no_bit():
    """Chunks are a matter of speed: what is merged, and in which order, is the same."""
    small, usual = digests(among(3, SMALL_CHUNKS)), digests(among(3, "same_bits.py"))
    assert len(small) == 3
    assert small == usual


def test_one_ranks_exception_ends_all_with_its_traceback_first():
    done = mpirun(3, "endings.py", "raises", limit=60)
    assert done.returncode != 0
    assert "ValueError: the disk of the last rank is full" in done.stdout
    assert "rank 2 failed with the error above; ending all ranks" in done.stdout
    first = done.stdout.index("Traceback")
    assert done.stdout[first:].index("endings.py") < done.stdout[first:].index("ValueError")
    assert "PeerFailed" not in done.stdout[: done.stdout.index("ValueError")]


@pytest.mark.parametrize("how", ["finishes", "leaves"])
def test_a_rank_that_finishes_early_is_named_by_its_peers(how):
    done = each_rank(3, "endings.py", how, limit=60)
    assert done.returncode != 0
    assert re.search(r"PeerFinished: rank [01]: rank 2 finished after 3 rounds, while this rank waits", done.stdout)


def test_a_rank_that_skips_a_step_is_named_after_stall_lines():
    done = each_rank(3, "endings.py", "skips", limit=60, PUSHSUM_STALL_SECONDS="1")
    assert done.returncode != 0
    assert re.search(r"rank [01] has waited [\d.]+ s for rank 2: .*round 3", done.stdout)
    assert re.search(r"PeerTimeout: rank [01]: waited [3-9]\.\d s for rank 2: .*round 3", done.stdout)


def test_an_error_that_the_user_caught_still_reaches_the_peers_with_its_reason():
    done = each_rank(3, "endings.py", "swallows", limit=60)
    assert done.returncode != 0
    assert re.search(r"PeerFailed: rank [01]: rank 2 stopped: OSError: lost", done.stdout)


@pytest.mark.parametrize(
    "launcher",
    [{"SLURM_STEP_NUM_TASKS": "4"}, {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}],
    ids=lambda variables: list(variables)[-1],
)
def test_copies_that_do_not_see_each_other_are_refused(launcher):
    """A launcher that does not belong to mpi4py's MPI starts N programs that each think they are alone."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", "import pushsum_opt as ps; ps.size()"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment(), **launcher},
    )
    assert done.returncode == 1
    assert f"LaunchError: {list(launcher)[-1]}=4" in done.stderr
    assert "srun --mpi=pmix" in done.stderr


def test_a_world_size_that_no_launcher_set_says_nothing():
    from pushsum_opt.job.launch import launched_size

    assert launched_size({"WORLD_SIZE": "4"}) is None


@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("size", [2, 5])
def test_an_overlapped_training_has_the_same_bits_as_on_loopback_whatever_the_naps(size, staleness):
    run = testing.run(size, lambda comm: numpy_training(comm, staleness=staleness))
    expected = [(digest, repr(weight)) for digest, weight in run]
    assert digests(among(size, OVERLAPPED[staleness])) == expected
    assert sum(float(weight) for _, weight in expected) == pytest.approx(size, rel=1e-12)


@pytest.mark.parametrize("level", ["funneled", "serialized"])
def test_overlap_works_where_threads_may_not_call_mpi_or_only_one_at_a_time(level):
    """There no thread moves messages: they move whenever the rank takes a step.

    At SERIALIZED too: the program may call MPI at any time, and so may another channel of the library.
    """
    run = testing.run(3, lambda comm: numpy_training(comm, staleness=2))
    output = succeeds(3, "same_bits.py", "--staleness", "2", "--naps", "5", "--threads", level)
    assert digests(output) == [(digest, repr(weight)) for digest, weight in run]
    assert output.count(f"ok at level {level}, messages moved by 0 threads") == 3


def test_asynchronous_ranks_of_different_speeds_and_lengths_lose_no_mass():
    among(4, "free_running.py")


@pytest.mark.parametrize("how", ["stop", "hold"])
def test_no_other_asynchronous_rank_waits_for_one_that_stands_still(how):
    """Rank 1 is stopped for 5 s, or holds its interpreter's lock for 5 s; nobody loses mass."""
    output = among(3, f"free_running.py {how}")
    longest = dict(re.findall(r"rank (\d) of 3: ok, longest step ([\d.]+) s", output))
    assert float(longest["0"]) < 3.0, "a step of rank 0 stood still with rank 1"
    assert float(longest["2"]) < 3.0, "a step of rank 2 stood still with rank 1"


@pytest.mark.parametrize("tau", [0, 1])
def test_a_waiting_rank_leaves_its_core_to_others(tau):
    output = among(2, f"waiting.py {tau}")
    share = {rank: (float(taken), float(used)) for rank, taken, used in re.findall(r"waited (\d) (\S+) (\S+)", output)}
    taken, used = share["0"]
    assert taken > 1.5, "it was not there yet when the other rank began to sleep"
    assert used < 0.2, "far below one core; what it is on a quiet machine, a benchmark says"


@pytest.mark.parametrize("staleness", ["0", "2", "unbounded"])
def test_ranks_with_different_numbers_of_batches_wait_for_nobody_and_every_batch_counts(staleness):
    succeeds_among(UNEVEN, 3, f"uneven.py {staleness}")


def test_a_buffer_with_inf_on_one_rank_or_later_holds_nothing_up_and_other_arguments_on_one_rank_are_named():
    said = succeeds_among(UNEVEN, 3, "buffers.py")
    assert said.count("early holds inf or nan on rank 1") == 2


def test_outer_steps_are_the_papers_also_after_a_break_and_with_a_narrow_wire():
    succeeds_among(UNEVEN, 3, "outer_steps.py")
