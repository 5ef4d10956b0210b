"""What ranks wrote is read as it comes, however a run ends, and figures follow from it."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
from support.recorded import BEGAN, RecordedRun

import pushsum_opt as ps
from pushsum_opt.observe.bounded_file import OLDER
from pushsum_opt.observe.report import reading
from pushsum_opt.observe.report.figures import figures_of_run
from pushsum_opt.observe.report.reading import Folder


def test_a_recorded_run_has_the_lines_of_a_real_one(tmp_path):
    def rank(comm):
        with ps.PushSum([np.zeros(3)], graph=ps.graphs.Ring(), comm=comm) as push_sum:
            ps.observe.Metrics(push_sum, jsonl=tmp_path / "real", every=2)
            for _ in range(4):
                push_sum.mix()

    ps.testing.run(3, rank)
    RecordedRun(tmp_path / "model", 3, graph=ps.graphs.Ring(), every=2).go(4).end()
    for real, model in zip(sorted((tmp_path / "real").iterdir()), sorted((tmp_path / "model").iterdir()), strict=True):
        both = [[json.loads(line) for line in file.read_text().splitlines()] for file in (real, model)]
        assert [line.keys() for line in both[0]] == [line.keys() for line in both[1]]
        assert both[0][0]["about"].keys() == both[1][0]["about"].keys()
        assert both[0][0]["about"]["rounds"] == both[1][0]["about"]["rounds"]
        assert both[0][1].keys() == both[1][1].keys()


def test_each_look_takes_in_what_came_since(tmp_path):
    model = RecordedRun(tmp_path, 3, every=10).go(25)
    folder = Folder(tmp_path)
    assert {len(log.rows) for log in folder.look().ranks.values()} == {2}
    assert {len(log.rows) for log in folder.look().ranks.values()} == {2}
    model.go(25)
    run = folder.look()
    assert {len(log.rows) for log in run.ranks.values()} == {5}
    assert not run.ended()
    model.end()
    run = folder.look()
    assert run.ended()
    assert {log.rows[-1]["round"] for log in run.ranks.values()} == {49}


def test_a_line_that_is_written_in_two_parts_is_read_once_it_is_complete(tmp_path):
    RecordedRun(tmp_path, 1).go(20)
    [path] = tmp_path.iterdir()
    *_, last = path.read_bytes().splitlines(keepends=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: -len(last) + 20])
    folder = Folder(tmp_path)
    assert len(folder.look().ranks[0].rows) == 1
    with path.open("ab") as file:
        file.write(whole[-len(last) + 20 :])
    assert [row["round"] for row in folder.look().ranks[0].rows] == [9, 19]


def test_lines_of_a_file_that_was_put_aside_are_read_too(tmp_path):
    model = RecordedRun(tmp_path, 1).go(30)
    [path] = tmp_path.iterdir()
    head, first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + first)
    folder = Folder(tmp_path)
    assert len(folder.look().ranks[0].rows) == 1
    with path.open("ab") as file:
        file.write(second)
    os.replace(path, path.with_suffix(OLDER))
    path.write_bytes(head + third)
    assert [row["round"] for row in folder.look().ranks[0].rows] == [9, 19, 29]
    assert [row["round"] for row in Folder(tmp_path).look().ranks[0].rows] == [9, 19, 29]
    model.end()


def test_of_a_long_run_every_second_row_is_held_and_the_last_one(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "FEWEST_ROWS", 8)
    monkeypatch.setattr(reading, "ROWS_HELD", 8)
    slow = 137
    RecordedRun(tmp_path, 1, every=1, own=lambda rank, round: 0.9 if round == slow else 0.05).go(500)
    log = Folder(tmp_path).look().ranks[0]
    assert len(log.rows) <= 16
    assert log.rows[-1]["round"] == 499
    steps = np.diff([row["round"] for row in log.rows])
    assert steps.max() <= 4 * np.median(steps)
    assert log.worst_step == pytest.approx(0.9, rel=0.01)
    assert figures_of_run(Folder(tmp_path).look()).step == pytest.approx(0.05, rel=0.05)


def test_the_newest_run_is_read_unless_another_one_is_named(tmp_path):
    RecordedRun(tmp_path, 2, run="aaaa", began=BEGAN + 100).go(10)
    RecordedRun(tmp_path, 3, run="bbbb").go(20)
    folder = Folder(tmp_path)
    assert (folder.look().name, folder.look().size, folder.others) == ("aaaa", 2, ["bbbb"])
    assert Folder(tmp_path, "bbbb").look().size == 3
    with pytest.raises(ps.errors.ConfigurationError, match="of run cccc"):
        Folder(tmp_path, "cccc")


def test_ranks_that_come_later_are_found(tmp_path):
    model = RecordedRun(tmp_path, 3).go(10)
    late = next(tmp_path.glob("*-00002.jsonl"))
    text = late.read_bytes()
    late.unlink()
    folder = Folder(tmp_path)
    assert folder.look().missing == [2]
    late.write_bytes(text)
    assert folder.look().missing == []
    model.end()


def test_a_spare_writes_beside_the_rank_whose_place_it_takes_and_counts_from_then_on(tmp_path):
    run = RecordedRun(tmp_path, 3).go(50)
    run.lose(1, ps.Loss((1,), 51, 0.75, 1, 0.25, 1.5))
    run.go(50)
    folder = Folder(tmp_path)
    assert folder.look().lost == {1}
    run.losses[0] = dataclasses.replace(run.losses[0], replaced=(1,))
    spare = RecordedRun(tmp_path, 3, began=BEGAN + max(run.clocks), about={"pid": 77})
    spare.go(50)
    run.go(50)
    for other in (0, 2):
        next(tmp_path.glob(f"*-{other:05d}-77.jsonl")).unlink()
    assert len(list(tmp_path.glob("*-00001*"))) == 2
    found = folder.look()
    assert found.ranks[1].about["pid"] == 77
    assert found.lost == set()
    [loss] = found.losses
    assert loss["replaced"] == [1]
    assert loss["time"] < BEGAN + 3.1  # when the rank was lost


def test_a_folder_without_metrics_is_an_error_that_says_how_to_make_some(tmp_path):
    with pytest.raises(ps.errors.ConfigurationError, match="jsonl="):
        Folder(tmp_path)
    (tmp_path / "metrics-1234-00000.jsonl").write_text('{"time": 1.0, "rank": 0}\n')
    with pytest.raises(ps.errors.ConfigurationError, match="in 1 files the first line"):
        Folder(tmp_path)


def test_figures_tell_own_work_from_waiting(tmp_path):
    """In synchronous rounds all ranks have the same step time; their own work tells who is slow."""
    RecordedRun(tmp_path, 4, own=lambda rank, round: 0.09 if rank == 2 else 0.05).go(100).end()
    figures = figures_of_run(Folder(tmp_path).look())
    assert [round(one.step, 3) for one in figures.ranks] == [0.09] * 4
    assert [round(one.own, 3) for one in figures.ranks] == [0.05, 0.05, 0.09, 0.05]
    assert figures.slowest.rank == 2
    assert max(figures.waited_for, key=figures.waited_for.get) == 2
    assert figures.ranks[0].bytes_per_second == pytest.approx(1e6 / 0.09, rel=0.01)


def test_a_run_of_one_row_has_figures_too(tmp_path):
    RecordedRun(tmp_path, 2, every=10).go(10)
    assert figures_of_run(Folder(tmp_path).look()).step == pytest.approx(0.05, rel=0.01)
