"""The page of a run: it needs nothing else, says what the figures say, and its pictures can be read."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from support.recorded import RecordedRun

import pushsum_opt as ps
from pushsum_opt.cli import main
from pushsum_opt.observe.report.over_time import pooled, rate, series
from pushsum_opt.observe.report.page import page
from pushsum_opt.observe.report.pictures.svg import LETTER
from pushsum_opt.observe.report.reading import Folder

VOID = {"meta", "br", "link", "img", "input"}


class Checked(HTMLParser):
    """Sees that each element ends where it should, and that nothing is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attributes):
        assert not {"src", "href", "srcset"} & dict(attributes).keys(), (tag, attributes)
        assert tag not in {"script", "link", "iframe", "object"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(text):
    """Return the texts of a page, after a look at its form."""
    checked = Checked()
    checked.feed(text)
    assert checked.open == []
    assert "url(" not in text
    assert "@import" not in text
    return " ".join(" ".join(checked.texts).split())


def pictures(text):
    return [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def boxes(picture):
    """Return the places of all texts: (left, top, right, bottom, text)."""
    for one in picture.iter("text"):
        x, y, length = float(one.get("x")), float(one.get("y")), LETTER * len(one.text)
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[one.get("text-anchor")] * length
        if one.get("transform"):
            yield x - 9, y - length, x + 3, y, one.text
        else:
            yield left, y - 9, left + length, y + 3, one.text


def uneven(size):
    chance = random.Random(size)
    slowest = size - 2
    return lambda rank, round: 0.05 * (1 + 0.2 * chance.random()) * (1.8 if rank == slowest else 1)


@pytest.mark.parametrize(("size", "staleness"), [(1, 0), (2, 0), (8, "unbounded"), (64, 1), (100, 0)])
def test_pictures_can_be_read(tmp_path, size, staleness):
    run = RecordedRun(tmp_path, size, own=uneven(size), staleness=staleness).go(60)
    for collected in run.collected:
        collected._add({"loss": 1234.5})
    run.end()
    text = page(Folder(tmp_path).look())
    read(text)
    found = pictures(text)
    assert len(found) == 2 * (8 if size > 1 and staleness != "unbounded" else 7)
    for picture in found:
        width, height = float(picture.get("width")), float(picture.get("height"))
        places = list(boxes(picture))
        for left, top, right, bottom, said in places:
            assert -1 <= left < right <= width + 1, (picture.get("aria-label"), said)
            assert -1 <= top < bottom <= height + 1, (picture.get("aria-label"), said)
        for one, other in combinations(places, 2):
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (picture.get("aria-label"), one, other)
        names = [one.text for one in picture.iter("text") if one.get("class") == "name"]
        assert any("(" in name or "per step" in name or name in ("push weight", "loss") for name in names), names


def test_the_page_says_what_ran_and_what_to_change(tmp_path):
    RecordedRun(tmp_path, 8, own=uneven(8), spans=lambda rank, round: {"data": 0.01}).go(200).end()
    said = read(page(Folder(tmp_path).look()))
    assert "train.py on 8 ranks" in said
    assert "OnePeerExponential(), synchronous (staleness=0)" in said
    assert "Rank 6 needs" in said
    assert "torch 2.13.0" in said
    assert "data 10.0 ms" in said
    assert "Began 2025-06-15 15:06 UTC, ended." in said


def test_losses_are_listed_and_marked(tmp_path):
    run = RecordedRun(tmp_path, 4).go(50)
    run.lose(1, ps.Loss((1,), 51, 0.75, 2, 0.5, 1.5, replaced=()))
    run.go(50).end()
    text = page(Folder(tmp_path).look())
    said = read(text)
    assert "ended without rank 1" in said
    assert "51 rank 1 0.750 2 (0.500) 1.50 s -" in said
    assert any('class="mark"' in part for part in text.split("<svg"))


def test_what_is_not_known_is_not_shown(tmp_path):
    RecordedRun(tmp_path, 4).go(50)
    said = read(page(Folder(tmp_path).look()))
    assert "Consensus distance" not in said
    assert "Spans of the program" not in said
    assert "Losses and recoveries" not in said
    assert "not ended: ranks 0-3" in said


def test_names_of_the_users_own_cannot_break_the_page(tmp_path):
    evil = "</title><script>alert(1)</script>"
    run = RecordedRun(
        tmp_path, 2, host=lambda rank: evil, spans=lambda rank, round: {evil: 0.01}, about={"program": evil}
    )
    run.go(20)
    run.collected[0]._add({evil: 1.0})
    run.end()
    assert evil in read(page(Folder(tmp_path).look()))


def test_a_consensus_distance_that_the_program_logs_is_drawn(tmp_path):
    run = RecordedRun(tmp_path, 2)
    for _ in range(5):
        run.go(9)
        for collected in run.collected:
            collected._add({"consensus_distance": 0.25})
        run.go(1)
    said = read(page(Folder(tmp_path).look()))
    assert "The last value is 0.250" in said


def test_values_over_many_powers_of_ten_stand_on_a_logarithmic_axis(tmp_path):
    run = RecordedRun(tmp_path, 2)
    for power in range(12):
        run.go(9)
        for collected in run.collected:
            collected._add({"loss": 3.0 * 10.0**-power})
        run.go(1)
    run.end()
    found = [one for one in pictures(page(Folder(tmp_path).look())) if one.get("aria-label") == "Logged: loss"]
    assert len(found) == 2
    for picture in found:
        assert {"10", "1e-08"} <= {one.text for one in picture.iter("text")}
        line = next(one for one in picture.iter("path") if one.get("class") == "line").get("d")
        heights = [float(point.split()[1]) for point in line[1:].split("L")]
        assert np.ptp(np.diff(heights)) <= 0.3  # equal steps down


def test_what_closing_writes_does_not_bend_the_lines(tmp_path):
    run = RecordedRun(tmp_path, 2).go(50)
    run.clocks = [clock + 60.0 for clock in run.clocks]  # such as a last evaluation
    run.end()
    line = series(Folder(tmp_path).look(), rate(lambda row: row["sent_bytes_total"], lambda row: row["time"]))
    assert min(line.low) > 0.9 * max(line.high)


@pytest.mark.parametrize("every", [1, 10, 100])
def test_pooled_quantiles_are_those_of_all_steps(tmp_path, every):
    chance = random.Random(3)
    times = [0.05 + 0.1 * chance.random() ** 2 for _ in range(2001)]
    RecordedRun(tmp_path, 1, own=lambda rank, round: times[round], every=every).go(2001).end()
    found = pooled(Folder(tmp_path).look().ranks[0].rows, (0.1, 0.5, 0.9), every)
    np.testing.assert_allclose(found, np.quantile(times, (0.1, 0.5, 0.9)), rtol=0.08)


def test_a_series_has_the_least_the_median_and_the_largest_of_each_moment(tmp_path):
    RecordedRun(tmp_path, 3, own=lambda rank, round: 0.05 * (1 + rank), staleness="unbounded").go(200).end()
    run = Folder(tmp_path).look()
    line = series(run, lambda before, row: row["step_seconds"].get("mean"))
    assert (line.low[3], line.middle[3], line.high[3]) == pytest.approx((0.05, 0.1, 0.15))
    assert (line.low[-1], line.high[-1]) == pytest.approx((0.15, 0.15))  # the others have ended
    assert line.x[-1] == pytest.approx(200 * 0.15)
    assert series(run, lambda before, row: None) is None


def test_the_command_writes_the_page_of_a_real_run_and_prints_the_advice(tmp_path, capsys):
    def rank(comm):
        with ps.PushSum([np.zeros(1000)], graph=ps.graphs.Ring(), comm=comm) as push_sum:
            metrics = ps.observe.Metrics(push_sum, jsonl=tmp_path / "metrics", every=2)
            for k in range(20):
                metrics.log(loss=k)
                push_sum.mix()

    ps.testing.run(5, rank)
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "metrics"), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "5 of 5 ranks" in said
    assert "- Ring() needs" in said
    text = read(out.read_text(encoding="utf-8"))
    assert "Logged: loss" in text
    assert "Ring() needs" in text


def test_a_page_that_cannot_be_made_is_an_error(tmp_path, capsys):
    run = RecordedRun(tmp_path, 2, every=50)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 1
    assert "the first one comes after 50 rounds" in capsys.readouterr().err
    run.go(50).end()
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "no" / "page.html")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_metrics_of_a_newer_format_are_refused(tmp_path, capsys):
    RecordedRun(tmp_path, 1, about={"format": 1000}).go(10)
    assert main(["report", str(tmp_path)]) == 1
    assert "a newer pushsum_opt wrote them" in capsys.readouterr().err


def test_of_many_ranks_the_page_stays_small(tmp_path):
    RecordedRun(tmp_path, 128, own=uneven(128), graph=ps.graphs.Complete()).go(20).end()
    text = page(Folder(tmp_path).look())
    assert len(text) < 1_000_000
    assert "Of every 2 ranks the slowest one is shown" in text
