"""Each rule of advice says its figure where it holds, and nothing where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.recorded import RecordedRun

import pushsum_opt as ps
from pushsum_opt.observe.report.advice import RULES, Evidence, advise, faults, mixing, speed
from pushsum_opt.observe.report.reading import Folder


@pytest.fixture
def recorded(tmp_path):
    """Record a run; return what rules look at."""
    runs = []

    def record(size=8, rounds=200, *, end=True, **options):
        folder = tmp_path / str(len(runs))
        runs.append(RecordedRun(folder, size, **options).go(rounds))
        if end:
            runs[-1].end()
        return Evidence(Folder(folder).look())

    return record


def slow(*ranks, by=1.8):
    return lambda rank, round: 0.05 * (by if rank in ranks else 1.0)


def taking_turns(rank, round):
    """Every rank is slow in one step of sixteen, each in another one."""
    return 0.15 if (rank * 5 + round) % 16 == 0 else 0.05


def test_a_run_in_which_nothing_is_wrong_gets_no_advice_but_that_all_reduce_would_do(recorded):
    evidence = recorded()
    assert [rule.__name__ for rule in RULES if rule(evidence)] == ["all_reduce_would_do"]


RECORDINGS = Path(__file__).parent / "recordings"
"""Written by examples/slow_rank.py on four ranks under mpirun with ``--seconds 0.03``, a row every 100 rounds; one
of them with ``--slow -1 --staleness 1`` too."""


def test_of_a_run_under_mpirun_with_a_slow_rank():
    first, second = advise(Folder(RECORDINGS / "slow-rank").look())
    assert "Rank 2 needs 124 ms for the own work of a step, 1.94 x the median of 64.0 ms" in first.text
    assert "(60.0 ms more than usual are in the span 'data')" in first.text
    assert "Ring() needs 20 rounds" in second.text


def test_of_a_run_under_mpirun_in_which_no_rank_is_slow():
    assert ["Ring()" in advice.text for advice in advise(Folder(RECORDINGS / "even").look())] == [True]


class TestSlowRank:
    def test_one_rank(self, recorded):
        advice = speed.a_rank_is_slow(recorded(own=slow(3)))
        assert "Rank 3 needs 90.0 ms for the own work of a step, 1.80 x the median of 50.0 ms" in advice.text
        assert "staleness='unbounded'" in advice.text
        assert advice.saves == pytest.approx(4 / 9, abs=0.02)

    def test_one_of_two(self, recorded):
        advice = speed.a_rank_is_slow(recorded(size=2, own=slow(1)))
        assert "Rank 1 needs 90.0 ms for the own work of a step, 1.80 x the median of 50.0 ms" in advice.text

    def test_a_whole_host(self, recorded):
        advice = speed.a_rank_is_slow(recorded(own=slow(4, 5), size=12, host=lambda rank: f"node{rank // 2}"))
        assert advice.text.startswith("Ranks 4-5, all ranks of host node2, need up to 90.0 ms")

    def test_the_span_that_explains_it(self, recorded):
        def spans(rank, round):
            return {"data": 0.045 if rank == 3 else 0.005, "forward": 0.02}

        advice = speed.a_rank_is_slow(recorded(own=slow(3), spans=spans))
        assert "(40.0 ms more than usual are in the span 'data')" in advice.text
        assert "span" not in speed.a_rank_is_slow(recorded(own=slow(3))).text

    def test_where_nobody_waits_for_it(self, recorded):
        evidence = recorded(own=slow(3), staleness="unbounded")
        assert "rate_correction=True" in speed.a_rank_is_slow(evidence).text
        corrected = recorded(own=slow(3), staleness="unbounded", about={"rate_correction": True})
        assert speed.a_rank_is_slow(corrected) is None

    def test_none(self, recorded):
        assert speed.a_rank_is_slow(recorded(own=slow(3, by=1.1))) is None


class TestLateMessages:
    def late(self, sender, receiver):
        return 0.03 if sender == 5 else 0.0005

    def test_of_one_rank(self, recorded):
        advice = speed.messages_of_a_rank_are_late(recorded(message=self.late))
        assert "37 % of all waiting is for rank 5 on host node0" in advice.text
        assert advice.saves == pytest.approx(0.37 * 7.8 / 57.8, abs=0.01)

    def test_of_all_ranks_or_of_a_slow_one(self, recorded):
        every = recorded(message=lambda sender, receiver: 0.03)
        assert speed.messages_of_a_rank_are_late(every) is None
        assert speed.messages_of_a_rank_are_late(recorded(own=slow(5))) is None

    def test_of_one_rank_among_several(self, recorded):
        advice = speed.messages_of_a_rank_are_late(recorded(message=self.late, graph=ps.graphs.Complete()))
        assert "of all waiting is for rank 5" in advice.text


class TestHiddenMessages:
    def test_messages_that_take_part_of_a_step(self, recorded):
        advice = speed.messages_can_be_hidden(recorded(message=lambda sender, receiver: 0.03))
        assert "Waiting is 37 % of a step, and one message takes 0.375 steps (30.0 ms" in advice.text
        assert "about 50.0 ms in place of 80.0 ms" in advice.text
        assert advice.saves == pytest.approx(3 / 8, abs=0.01)

    def test_a_slow_rank_makes_no_slow_messages(self, recorded):
        assert speed.messages_can_be_hidden(recorded(own=slow(3))) is None

    def test_they_are_hidden_already(self, recorded):
        evidence = recorded(message=lambda sender, receiver: 0.03, staleness=1)
        assert evidence.step == pytest.approx(0.05, rel=0.01)
        assert speed.messages_can_be_hidden(evidence) is None
        assert speed.messages_take_too_long(evidence) is None


class TestTooManyBytes:
    def test_longer_than_the_steps_in_which_they_may_travel(self, recorded):
        message = {"message": lambda sender, receiver: 0.16}
        advice = speed.messages_take_too_long(recorded(staleness=1, **message))
        assert "though it had 1 steps to travel" in advice.text
        assert "1.00 MB from each rank in a step. wire_dtype='bfloat16' sends half of it" in advice.text
        assert "in its own round" in speed.messages_take_too_long(recorded(**message)).text

    def test_what_is_narrow_already_is_sent_less_often(self, recorded):
        evidence = recorded(
            staleness=1, message=lambda sender, receiver: 0.16, about={"wire_dtype": "int8", "gossip_every": 2}
        )
        advice = speed.messages_take_too_long(evidence)
        assert "gossip_every=4" in advice.text
        assert "wire_dtype" not in advice.text

    def test_messages_in_time(self, recorded):
        assert speed.messages_take_too_long(recorded(staleness=1, message=lambda sender, receiver: 0.04)) is None
        assert speed.messages_take_too_long(recorded(message=lambda sender, receiver: 0.04)) is None


class TestSingleSlowSteps:
    def test_ranks_that_take_turns(self, recorded):
        advice = speed.single_steps_are_slow(recorded(own=taking_turns))
        assert "no rank is slower than others on the whole" in advice.text
        assert "staleness=2 bridges" in advice.text

    def test_one_rank_is_slow_always_or_none_ever(self, recorded):
        assert speed.single_steps_are_slow(recorded(own=slow(3))) is None
        assert speed.single_steps_are_slow(recorded()) is None


class TestCalls:
    def test_much_of_the_time(self, recorded):
        advice = speed.calls_of_all_ranks_wait(recorded(call=0.02))
        assert "28 % of the time is waited in calls that ranks make together (averages" in advice.text

    def test_little(self, recorded):
        assert speed.calls_of_all_ranks_wait(recorded(call=0.002)) is None

    def test_a_slow_rank_makes_them_wait(self, recorded):
        assert speed.calls_of_all_ranks_wait(recorded(call=0.02, own=slow(3))) is None

    def test_gradients_within_a_host_are_named(self, recorded):
        evidence = recorded(call=0.02, about={"within_host": "gradients"})
        assert "(gradients within a host, averages" in speed.calls_of_all_ranks_wait(evidence).text


class TestAllReduce:
    def test_rounds_cost_little(self, recorded):
        advice = speed.all_reduce_would_do(recorded(message=lambda sender, receiver: 0.002))
        assert "Communication is 3.8 % of a step (2.00 ms" in advice.text

    def test_rounds_cost_much_or_overlap(self, recorded):
        assert speed.all_reduce_would_do(recorded(message=lambda sender, receiver: 0.01)) is None
        assert speed.all_reduce_would_do(recorded(staleness=1)) is None


class TestGraph:
    def test_a_ring(self, recorded):
        advice = mixing.the_graph_mixes_slowly(recorded(size=6, rounds=20, graph=ps.graphs.Ring()))
        needed = ps.mixing.analyse(ps.graphs.Ring(), 6).rounds_to(1e-3)
        assert f"Ring() needs {needed} rounds to 1e-3" in advice.text
        assert f"{ps.graphs.default(6)!r} needs 4 with" in advice.text

    def test_a_graph_of_the_users_own(self, recorded):
        graph = ps.graphs.from_function(lambda rank, size, round: ((rank + 1) % size,), period=1)
        assert mixing.the_graph_mixes_slowly(recorded(size=6, rounds=20, graph=graph)) is not None

    def test_the_default(self, recorded):
        for size in (2, 6, 8):
            assert mixing.the_graph_mixes_slowly(recorded(size=size, rounds=20)) is None

    def test_a_graph_of_which_ranks_are_missing_is_not_judged(self, recorded, tmp_path):
        recorded(size=6, rounds=20, graph=ps.graphs.Ring())
        next((tmp_path / "0").glob("*-00003.jsonl")).unlink()
        assert mixing.the_graph_mixes_slowly(Evidence(Folder(tmp_path / "0").look())) is None


class TestFarApart:
    def apart(self, recorded, consensus, **moved):
        about = {"moved": moved, "logged": {"consensus_distance": consensus}}
        return mixing.ranks_are_far_apart(recorded(row=lambda rank, round: about))

    def test_a_large_part_of_what_training_moves(self, recorded):
        advice = self.apart(recorded, 0.3, distance=1.0, rounds=1000.0)
        assert "The consensus distance is 0.300, 30 % of what the last 1000 rounds moved a model (1.00)" in advice.text

    def test_a_small_part_or_too_early_to_tell(self, recorded):
        assert self.apart(recorded, 0.05, distance=1.0, rounds=1000.0) is None
        assert self.apart(recorded, 0.3, distance=1.0, rounds=50.0) is None
        assert self.apart(recorded, 0.3) is None


class TestFaults:
    def test_ranks_that_were_lost(self, tmp_path):
        run = RecordedRun(tmp_path, 4).go(20)
        run.lose(2, ps.Loss((2,), 21, 0.75, 1, 0.25, 1.5))
        run.go(20).end()
        evidence = Evidence(Folder(tmp_path).look())
        advice = faults.ranks_were_lost(evidence)
        assert "Rank 2 died (round 21); mass of 0.750 of 4 was lost" in advice.text
        assert advice.fault
        assert faults.a_rank_is_silent(evidence) is None
        assert evidence.run.ended()

    def test_no_loss(self, recorded):
        assert faults.ranks_were_lost(recorded()) is None

    def test_a_rank_that_is_silent(self, tmp_path):
        run = RecordedRun(tmp_path, 4).go(20)
        run.ranks.remove(3)
        run.go(2000)
        advice = faults.a_rank_is_silent(Evidence(Folder(tmp_path).look()))
        assert "Rank 3 wrote nothing in the last 100 s while others did" in advice.text
        assert "host node0, process 4003" in advice.text

    def test_a_rank_that_ended_or_writes_is_not_silent(self, tmp_path):
        run = RecordedRun(tmp_path, 4).go(20)
        run.end([3])
        run.go(2000)
        assert faults.a_rank_is_silent(Evidence(Folder(tmp_path).look())) is None

    def test_a_rank_without_a_file(self, recorded, tmp_path):
        recorded(rounds=1000)
        next((tmp_path / "0").glob("*-00003.jsonl")).unlink()
        assert "no file of rank 3 of 8" in faults.a_rank_is_silent(Evidence(Folder(tmp_path / "0").look())).text

    def test_values_that_are_not_finite(self, recorded):
        evidence = recorded(row=lambda rank, round: {"chunks_skipped_total": 7 * (rank == 2)})
        assert "Rank 2 did not merge 7 parts" in faults.values_were_not_finite(evidence).text
        assert faults.values_were_not_finite(recorded()) is None

    def test_blocks_that_are_missed(self, recorded):
        def missed(count):
            return recorded(row=lambda rank, round: {"blocks_missed_total": count})

        assert "0.1 % of the blocks" in faults.blocks_were_missed(missed(400)).text
        assert faults.blocks_were_missed(missed(4)) is None

    def test_versions(self, tmp_path):
        RecordedRun(tmp_path, 3, about={"versions": {"torch": "2.13.0"}}).go(10)
        evidence = Evidence(Folder(tmp_path).look())
        assert faults.versions_differ(evidence) is None
        evidence.run.ranks[1].about["versions"] = {"torch": "2.4.1"}
        assert "Rank 1 ran torch 2.4.1, and 2 others 2.13.0" in faults.versions_differ(evidence).text


def test_what_matters_most_comes_first(recorded):
    evidence = recorded(
        own=slow(3), graph=ps.graphs.Ring(), row=lambda rank, round: {"chunks_skipped_total": 7 * (rank == 2)}
    )
    first, second, *_ = advise(evidence.run)
    assert "not finite" in first.text
    assert "Rank 3 needs" in second.text
