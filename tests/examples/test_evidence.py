"""The tables of the paper's claims are made by the library's real exchange, and hold what they say."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def evidence():
    place = str(ROOT / "examples" / "benchmarks")
    sys.path.insert(0, place)
    import evidence

    yield evidence
    sys.path.remove(place)


SHORT = Namespace(ranks=4, epochs=1, seeds=1)


def test_a_larger_rate_leaves_ranks_further_apart_and_two_peers_nearer_than_one(evidence, monkeypatch, capsys):
    monkeypatch.setattr(evidence, "RATES", (0.1, 0.0125))
    rows = evidence.deviations(SHORT)
    one, two = (
        [row["mean"] for row in rows if row["graph"] == str(graph)]
        for graph in (evidence.OnePeerExponential(), evidence.KPeerExponential(2))
    )
    assert one[0] > one[1] > 0
    assert two[0] < one[0]
    assert all(row["least"] <= row["mean"] <= row["most"] for row in rows)
    assert "slope on log-log axes" in capsys.readouterr().out


def test_without_division_nothing_changes_where_push_weights_are_1_and_ranks_differ_where_they_are_not(
    evidence, capsys
):
    rows = {(row["graph"], row["divided"]): row for row in evidence.bias(SHORT)}
    assert rows["one-peer exponential", True]["accuracy"] == rows["one-peer exponential", False]["accuracy"]
    uneven = rows["uneven", True]
    assert max(uneven["weights"]) > 1.5 * min(uneven["weights"])
    assert sum(uneven["weights"]) == pytest.approx(4)  # nothing is in flight
    assert sum(rows["uneven, staleness 1", True]["weights"]) < 3.5  # and here some is
    assert rows["uneven", False]["accuracy"] != uneven["accuracy"]
    assert "ranks divide by w" in capsys.readouterr().out


def test_ranks_that_divide_train_as_the_optimizer_does(evidence):
    """The loop that can leave out the push weight is the optimizer's, if it does not."""

    def by_hand(job):
        evidence.one_bias(job, evidence.uneven(3), 1, 1, divided=True)
        return job.flat()

    def by_optimizer(job):
        options = {"graph": evidence.uneven(3), "staleness": 1, "comm": job.comm}
        optimizer = evidence.ps.PushSumOptimizer(job.sgd(momentum=0.0), job.model, **options)
        for images, labels in job.batches(0):
            job.backward(images, labels)
            optimizer.step()
        optimizer.close()
        return job.flat()

    pairs = zip(evidence.on_ranks(3, 0, by_hand), evidence.on_ranks(3, 0, by_optimizer), strict=True)
    for mine, its in pairs:
        np.testing.assert_array_equal(mine, its)


def test_every_hybrid_learns(evidence):
    rows = evidence.hybrids(Namespace(ranks=2, epochs=2, seeds=1))
    assert len({row["rule"] for row in rows}) == 5
    assert all(row["accuracy"] > 60 for row in rows)
