"""Over real MPI: the timelines of processes whose clocks differ make one trace, also where a rank was killed."""

from __future__ import annotations

import pytest
from mpi.launch import each_rank, succeeds
from observe.trace_reader import trace_of

pytestmark = pytest.mark.mpi


def test_the_timelines_of_ranks_whose_clocks_differ_make_one_trace(tmp_path):
    succeeds(3, "timeline.py", str(tmp_path))
    trace = trace_of(tmp_path)
    assert len(trace.arrows) == 3 * 12
    assert trace.about["clock_error_us"] < 1e5  # the clocks themselves are 300 s apart
    assert len(trace.named("forward")) == 3 * 12


def test_the_timeline_of_a_killed_rank_is_read_up_to_its_last_round(tmp_path):
    assert each_rank(3, "timeline.py", str(tmp_path), "killed", limit=60).returncode != 0
    trace = trace_of(tmp_path)
    assert trace.about["ranks_without_a_file"] == []
    rounds = [one for one in trace.slices if one["pid"] == 1 and one["cat"] == "round"]
    assert [one["name"] for one in rounds] == [f"round {k}" for k in range(9)]
    arrows = {(start["pid"], finish["pid"]) for start, finish in trace.arrows}
    assert arrows == {(0, 1), (1, 2), (2, 0)}
