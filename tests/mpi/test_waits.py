"""Over real MPI no call waits outside a deadline, and a rank that waits in vain says for whom."""

from __future__ import annotations

import re

import pytest
from mpi.launch import each_rank, succeeds

pytestmark = pytest.mark.mpi


def test_a_rank_that_ended_before_the_first_channel_is_named():
    done = each_rank(3, "waits.py", "first", limit=60)
    assert done.returncode != 0
    assert re.search(r"PeerFinished: rank 0: rank [12] has ended its program.*in ps\.average\(\)", done.stdout)


def test_a_set_up_on_one_rank_says_whom_it_misses_and_ends_at_its_deadline():
    done = each_rank(3, "waits.py", "busy", limit=60, PUSHSUM_STALL_SECONDS="2")
    assert done.returncode != 0
    missing = r"PushSum\(\.\.\.\), a collective call .* \(nothing was heard from ranks 1, 2 there\)"
    # Later on a busy machine, where the rank does not look in time.
    assert re.search(rf"rank 0 has waited ([2-9]|\d\d)\.\d s for {missing}", done.stdout)
    assert re.search(rf"PeerTimeout: rank 0: waited ([4-9]|\d\d)\.\d s for {missing}", done.stdout)


def test_different_set_up_calls_are_named_on_every_rank():
    done = each_rank(3, "waits.py", "crossed", limit=60)
    for rank in range(3):
        named = rf"rank {rank} caught MismatchError: rank {rank} calls .*\(.*\) while rank \d calls "
        assert re.search(named, done.stdout), done.stdout[-3000:]
    assert "rank 0 calls ps.average() while rank 1 calls PushSum(...)" in done.stdout


def test_a_call_on_one_rank_while_the_others_close_and_end_is_named():
    done = each_rank(2, "waits.py", "ended", limit=60)
    assert done.returncode != 0
    assert re.search(r"PeerFinished: rank 0: rank 1 has ended its program.*in ps\.average\(\)", done.stdout)


def test_averaged_on_one_rank_against_rounds_is_refused_on_both():
    done = each_rank(2, "waits.py", "steps", limit=60)
    for rank in range(2):  # by itself, or by the reason of the one that saw it first
        caught = rf"rank {rank} caught (MismatchError|PeerFailed): "
        assert re.search(rf"{caught}.*rank 0 calls averaged\(\)", done.stdout)
    assert "caught MismatchError" in done.stdout


@pytest.mark.parametrize("staleness", ["0", "1"])
def test_a_stall_line_names_the_rank_at_the_end_of_the_chain_and_its_span(staleness, tmp_path):
    done = each_rank(4, "waits.py", "chain", staleness, str(tmp_path / "said"), limit=60, PUSHSUM_STALL_SECONDS="1")
    assert (done.returncode, done.stdout.count(": ok")) == (0, 4), done.stdout[-3000:]
    chain = r"Rank 2 waits for rank 1 \(.*\), which waits for rank 0 \(.*\), which"
    assert re.search(rf'rank 3 has waited .* s for rank 2: .*{chain} (is|was last seen) in "forward"', done.stdout)


@pytest.mark.parametrize("end", ["return", "finalize"])
def test_slow_ranks_leave_no_message_to_the_user_and_end_together(end):
    succeeds(3, "waits.py", "fine", end, limit=60)


def test_at_the_end_no_message_is_left_that_nobody_received():
    """UCX warns of each; it comes with the Open MPI of PyPI. Without it there is nothing that could be seen."""
    over_ucx = {"OMPI_MCA_pml": "ucx", "OMPI_MCA_osc": "ucx"}
    over_ucx |= {f"OMPI_MCA_opal_common_ucx_{what}": "any" for what in ("tls", "devices")}
    done = each_rank(2, "waits.py", "late", limit=60, **over_ucx)
    assert (done.returncode, done.stdout.count(": ok")) == (0, 2), done.stdout[-3000:]
    assert "was not matched" not in done.stdout
