"""A timeline holds what every rank did, and one trace of all ranks can be made of it, however the run ended."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
from observe.trace_reader import trace_of

import pushsum_opt as ps
from pushsum_opt.cli import main
from pushsum_opt.observe.bounded_file import BoundedFile
from pushsum_opt.observe.timeline.clocks import compare_clocks
from pushsum_opt.observe.timeline.reading import Recording, newest_run


def record(folder, size=3, *, rounds=12, staleness=0, window=None, limit=64 << 20, clock=lambda rank: None, late=0.0):
    """Write the timelines of a run on loopback.

    Args:
        late: seconds by which the ranks are late in turn: rank 0 in round 0, rank 1 in round 1.
    """

    def rank(comm):
        tensors = [np.full(20_000, float(comm.rank))]
        with ps.PushSum(tensors, graph=ps.graphs.Ring(), staleness=staleness, comm=comm) as push_sum:
            ps.observe.Timeline(push_sum, folder, rounds=window, limit=limit, clock=clock(comm.rank))
            for k in range(rounds):
                with ps.observe.span("forward"):
                    time.sleep(late if k % size == comm.rank else 0.0)
                push_sum.mix()

    ps.testing.run(size, rank)


def crooked(rank):
    """A clock that is far from the others' and goes at another pace."""
    return lambda: 1e3 * rank + time.monotonic() * (1 + 2e-4 * rank)


@pytest.mark.parametrize("staleness", [0, 1, "unbounded"])
def test_an_arrow_leads_from_each_post_to_its_merge_though_the_clocks_of_the_ranks_differ(tmp_path, staleness):
    record(tmp_path, staleness=staleness, clock=crooked)
    trace = trace_of(tmp_path)
    assert len(trace.arrows) == 3 * 12 or (staleness == "unbounded" and trace.arrows)
    posted = {
        (one["pid"], int(one["name"].split()[-1]), one["args"]["round"])
        for one in trace.slices
        if "post" in one["name"]
    }
    drawn = {(start["pid"], finish["pid"], int(start["name"].split()[-1])) for start, finish in trace.arrows}
    assert drawn == posted
    assert trace.about["clock_error_us"] < 1e5  # the clocks themselves are 1000 s apart


def test_the_error_of_the_clocks_that_the_trace_states_holds(tmp_path):
    record(tmp_path, clock=crooked)
    recordings, _ = newest_run(tmp_path)
    lines = compare_clocks(recordings)
    for one in recordings:
        line, rank = lines[one.rank], one.rank
        for theirs in np.linspace(one.first, one.last, 20):
            true = (theirs - 1e12 * rank) / (1 + 2e-4 * rank)  # rank 0 has the true clock
            assert abs(line.corrected(theirs) - true) <= line.error_at(theirs) + 2


def test_clocks_are_put_together_by_the_least_round_trip_and_drift_as_a_line():
    def recording(rank, clock):
        meetings = []
        for begin in (0, 3600_000_000_000):
            met = []
            for index in range(8):
                came = begin + index * 1_000_000 + rank * 100
                left = begin + index * 1_000_000 + (1000 if index == 5 else 500_000)
                met.append([int(clock(came)), int(clock(left))])
            meetings.append({"met": met, "ranks": [0, 1]})
        last = meetings[-1]["met"][-1][1]
        return Recording([], {"rank": rank, "clock": ""}, meetings, first=meetings[0]["met"][0][0], last=last)

    def other(time):
        return 5e15 + time * (1 + 5e-5)

    lines = compare_clocks([recording(0, lambda time: time), recording(1, other)])
    assert lines[1].drift == pytest.approx(5e-5, abs=1e-8)
    for moment in (0, 1800e9, 3600e9):
        assert abs(lines[1].corrected(other(moment)) - moment) <= lines[1].error_at(other(moment)) < 2000


def test_ranks_that_read_the_same_clock_need_no_correction(tmp_path):
    record(tmp_path)
    assert trace_of(tmp_path).about["clock_error_us"] == 0


def test_the_trace_shows_rounds_waits_spans_calls_and_counters_on_every_rank(tmp_path):
    record(tmp_path, late=0.05)
    trace = trace_of(tmp_path)
    for rank in range(3):
        names = [one["name"] for one in trace.slices if one["pid"] == rank]
        assert names.count("forward") == 12
        assert {f"round {k}" for k in range(12)} <= set(names)
        assert f"post to {(rank + 1) % 3}" in names
        assert f"merge from {(rank - 1) % 3}" in names
        assert f"wait for {(rank - 1) % 3}" in names
        assert "close()" in names
        counters = [event for event in trace.events if event["ph"] == "C" and event["pid"] == rank]
        assert [one["args"]["w"] for one in counters if one["name"] == "push weight"] == [1.0] * 12
        assert all(one["args"]["per second"] > 0 for one in counters if one["name"] == "bytes sent")
    assert {event["args"]["name"].split(" on ")[0] for event in trace.events if event["name"] == "process_name"} == {
        "rank 0", "rank 1", "rank 2",
    }  # fmt: skip


def test_the_trace_has_counters_of_the_means_over_ranks(tmp_path):
    def rank(comm):
        z = np.full(20_000, float(comm.rank))
        with ps.PushSum([z], comm=comm, staleness=1) as push_sum:
            ps.observe.Timeline(push_sum, tmp_path)
            push_sum.report(loss=comm.rank, bad=np.nan)
            for k in range(40):
                z += 1e-3 * comm.rank * k
                push_sum.mix()

    ps.testing.run(4, rank)
    counters = [event for event in trace_of(tmp_path).events if event["ph"] == "C"]
    for rank in range(4):
        last = {one["name"]: one["args"] for one in counters if one["pid"] == rank}
        assert last.pop("bytes sent")["per second"] > 0
        assert last.pop("push weight") == {"w": pytest.approx(2 / 3)}
        last = {name: series["over ranks"] for name, series in last.items()}
        assert last.pop("consensus_distance") > 0
        assert last == pytest.approx({"loss": 1.5, "mass_held": 8 / 3, "mass_in_flight": 4 / 3})


def test_a_timeline_without_means_has_none_measured(tmp_path):
    def rank(comm):
        with ps.PushSum([np.full(20, float(comm.rank))], comm=comm) as push_sum:
            ps.observe.Timeline(push_sum, tmp_path, means=False)
            for _ in range(20):
                push_sum.mix()
            return push_sum.means()

    assert ps.testing.run(2, rank) == [{}, {}]
    assert {one["name"] for one in trace_of(tmp_path).events if one["ph"] == "C"} == {
        "push weight", "bytes sent",
    }  # fmt: skip


def test_a_wait_is_named_after_the_rank_that_was_waited_for_to_the_end(tmp_path):
    together = threading.Barrier(4)

    def rank(comm):
        with ps.PushSum([np.zeros(10)], graph=ps.graphs.Complete(), comm=comm) as push_sum:
            ps.observe.Timeline(push_sum, tmp_path)
            together.wait(60)
            push_sum.mix()

    ps.testing.run(4, rank, delays=lambda sender, receiver, before: 0.5 if sender == 3 else 0.0)
    trace = trace_of(tmp_path)
    for rank in range(3):
        waits = [
            one for one in trace.slices if one["pid"] == rank and one["cat"] == "wait" and one["args"]["round"] == 0
        ]
        assert max(waits, key=lambda one: one["dur"])["name"] == "wait for 3"


def test_only_the_rounds_that_were_asked_for_are_written(tmp_path):
    record(tmp_path, window=(4, 7))
    trace = trace_of(tmp_path)
    rounds = {one["args"]["round"] for one in trace.slices if one["cat"] in ("round", "message")}
    assert rounds == {4, 5, 6}
    assert len(trace.arrows) == 3 * 3


@pytest.mark.parametrize(("rounds", "limit"), [((7, 7), 1 << 20), ((-1, 3), 1 << 20), ((1, 2, 3), 1 << 20), (None, 10)])
def test_a_window_or_limit_that_cannot_be_used_is_refused(tmp_path, rounds, limit):
    def rank(comm):
        with ps.PushSum([np.zeros(1)], comm=comm) as push_sum, pytest.raises(ps.errors.ConfigurationError):
            ps.observe.Timeline(push_sum, tmp_path, rounds=rounds, limit=limit)

    ps.testing.run(1, rank)


def test_a_file_never_grows_beyond_its_limit_and_keeps_the_newest_events(tmp_path):
    record(tmp_path, rounds=500, limit=64 << 10)
    for rank in range(3):
        files = list(tmp_path.glob(f"timeline-*-{rank:05d}*.jsonl"))
        assert 32 << 10 < sum(file.stat().st_size for file in files) <= 64 << 10
    trace = trace_of(tmp_path)
    kept = {one["args"]["round"] for one in trace.slices if one["cat"] == "round"}
    assert 499 in kept
    assert 0 not in kept
    assert trace.arrows


def test_lines_are_not_held_in_memory_without_end(tmp_path):
    file = BoundedFile(tmp_path / "one.jsonl", 1 << 20, 0, lambda: "")
    for number in range(10_000):
        file.append(f"[{number}]\n")
    assert len((tmp_path / "one.jsonl").read_text().splitlines()) > 9_000
    file.close()


def test_a_torn_last_line_is_skipped_and_what_had_begun_ends_with_the_file(tmp_path):
    record(tmp_path)
    [file] = tmp_path.glob("timeline-*-00001.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    cut = next(index for index, line in enumerate(lines) if b'"R",0,8' in line)
    file.write_bytes(b"".join(lines[: cut + 1]) + lines[cut + 1][:7])
    trace = trace_of(tmp_path)
    assert trace.about["lines_that_were_torn"] == 1
    assert [one["pid"] for one in trace.named("round 8") if one["args"].get("unfinished")] == [1]
    assert {one["pid"] for one in trace.named("round 11")} == {0, 2}


def test_a_rank_that_died_before_its_first_event_does_not_move_the_others(tmp_path):
    """Its file holds the meetings at the start, and no event."""
    record(tmp_path, clock=lambda rank: lambda: 5e5 + crooked(rank)())
    path = next(tmp_path.glob("*-00001.jsonl"))
    lines = path.read_text().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if line.startswith("["))
    path.write_text("".join(lines[:first]))
    trace = trace_of(tmp_path)
    assert trace.about["clock_error_us"] < 1e5
    assert all(0 <= event["ts"] < 6e7 for event in trace.slices)


def test_a_rank_without_a_file_is_named(tmp_path):
    record(tmp_path)
    next(tmp_path.glob("timeline-*-00001.jsonl")).unlink()
    assert trace_of(tmp_path).about["ranks_without_a_file"] == [1]


@pytest.mark.parametrize("staleness", [0, 1])
def test_hosts_of_two_lanes_have_an_arrow_from_each_lane_to_the_same_lane_of_the_next_host(tmp_path, staleness):
    torch = pytest.importorskip("torch")

    def rank(comm):
        model = torch.nn.Linear(50, 40)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = ps.PushSumOptimizer(
            inner, model, within_host="gradients", graph=ps.graphs.Ring(), staleness=staleness, comm=comm
        )
        ps.observe.Timeline(optimizer, tmp_path)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(3, 50)).sum().backward()
            optimizer.step()
        optimizer.close()

    ps.testing.run(6, rank, local_size=2)
    trace = trace_of(tmp_path)
    drawn = [(start["pid"], finish["pid"]) for start, finish in trace.arrows]
    assert len(drawn) == 6 * 6
    for sender, receiver in drawn:
        assert sender % 2 == receiver % 2
        assert sender // 2 != receiver // 2
    assert {one["pid"] for one in trace.named("round 5")} == set(range(6))


def test_a_timeline_on_some_ranks_only_is_an_error_that_names_both_calls(tmp_path):
    def rank(comm):
        push_sum = ps.PushSum([np.zeros(5)], comm=comm)
        if comm.rank == 1:
            ps.observe.Timeline(push_sum, tmp_path)
        for _ in range(4):
            push_sum.mix()

    with pytest.raises(ps.testing.RankErrors, match=r"ps\.observe\.Timeline\(\)") as found:
        ps.testing.run(3, rank)
    assert any(isinstance(error, ps.errors.MismatchError) for error in found.value.errors.values())
    assert "mix() in round" in str(found.value)


def test_the_newest_of_several_runs_is_taken(tmp_path, capsys):
    record(tmp_path, rounds=2)
    record(tmp_path, rounds=3)
    assert trace_of(tmp_path).named("round 2")
    assert "left out 1 older run" in capsys.readouterr().out


def test_a_folder_without_a_timeline_is_an_error_that_says_what_to_do(tmp_path, capsys):
    assert main(["timeline", str(tmp_path)]) == 1
    assert "PUSHSUM_TIMELINE" in capsys.readouterr().err


def test_the_variable_makes_a_timeline_without_a_change_of_the_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PUSHSUM_TIMELINE", str(tmp_path / "made" / "here"))

    def rank(comm):
        with ps.PushSum([np.zeros(5)], comm=comm) as push_sum:
            push_sum.mix()

    ps.testing.run(2, rank)
    assert len(trace_of(tmp_path / "made" / "here").arrows) == 2


def test_training_goes_on_where_the_folder_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    record(tmp_path / "file")
    assert sum("its timeline ends here" in one.getMessage() for one in caplog.records) == 3


def test_a_message_from_a_sender_that_is_ahead_has_the_round_in_which_it_was_sent():
    """Rank 1 sends in its fifth round only, and rank 0 begins its first one after that."""
    ahead = threading.Event()

    def seldom(rank, size, round):
        return (1,) if rank == 0 else ((0,) if round % 6 == 4 else ())

    class Rounds(ps.Listener):
        def __init__(self):
            self.sent, self.merged = [], []

        def message_posted(self, round, peer, nbytes, mass):
            self.sent.append(round)

        def message_merged(self, round, peer, age):
            self.merged.append(round - age)

    def rank(comm):
        heard = Rounds()
        graph = ps.graphs.from_function(seldom, period=6)
        with ps.PushSum([np.zeros(4)], graph=graph, staleness="unbounded", comm=comm) as push_sum:
            push_sum.subscribe(heard)
            if comm.rank == 1:
                for _ in range(5):
                    push_sum.mix()
                ahead.set()
            else:
                assert ahead.wait(60.0)
                push_sum.mix()
            assert push_sum.stats()["worst_age"] >= 0
        return heard

    first, second = ps.testing.run(2, rank)
    assert sorted(first.merged) == sorted(second.sent) == [4]
    assert sorted(second.merged) == sorted(first.sent)


def test_a_span_without_an_optimizer_does_nothing():
    with ps.observe.span("alone"):
        pass


def test_every_line_that_was_written_is_json(tmp_path):
    record(tmp_path)
    for file in tmp_path.glob("timeline-*.jsonl"):
        for line in file.read_text().splitlines():
            json.loads(line)
