"""The tables of the paper's claims are made by real exchanges, and hold what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.test_fashion_mnist import write_stand_in
from support.ports import free_ports
from torch.nn.utils import vector_to_parameters
from warm.python import FOR_EXAMPLES, warm_python

import pushsum_opt as ps

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
    monkeypatch.setattr(evidence.deviations, "RATES", (0.1, 0.0125))
    rows = evidence.deviations.table(SHORT)
    one, two = (
        [row["mean"] for row in rows if row["graph"] == str(graph)]
        for graph in (ps.graphs.OnePeerExponential(), ps.graphs.KPeerExponential(2))
    )
    assert one[0] > one[1] > 0
    assert two[0] < one[0]
    assert all(row["least"] <= row["mean"] <= row["most"] for row in rows)
    assert "slope on log-log axes" in capsys.readouterr().out


def test_without_division_nothing_changes_where_push_weights_are_1_and_ranks_differ_where_they_are_not(
    evidence, capsys
):
    rows = {(row["graph"], row["divided"]): row for row in evidence.bias.table(SHORT)}
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
        evidence.bias.one_bias(job, evidence.bias.uneven(3), 1, 1, divided=True)
        return job.flat()

    def by_optimizer(job):
        options = {"graph": evidence.bias.uneven(3), "staleness": 1, "comm": job.comm}
        optimizer = ps.PushSumOptimizer(job.sgd(momentum=0.0), job.model, **options)
        for images, labels in job.batches(0):
            job.backward(images, labels)
            optimizer.step()
        optimizer.close()
        return job.flat()

    pairs = zip(evidence.bias.on_ranks(3, 0, by_hand), evidence.bias.on_ranks(3, 0, by_optimizer), strict=True)
    for mine, its in pairs:
        np.testing.assert_array_equal(mine, its)


def test_every_hybrid_learns(evidence):
    rows = evidence.hybrids.table(Namespace(ranks=2, epochs=2, seeds=1))
    assert len({row["rule"] for row in rows}) == 5
    assert all(row["accuracy"] > 60 for row in rows)


def start(program: str, *words: str, ranks: int = 2) -> None:
    """Run a program of examples/benchmarks on real ranks."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "pushsum_opt", "run", "-np", str(ranks), *warm_python(*FOR_EXAMPLES)]
    done = subprocess.run(
        [*command, str(ROOT / "examples" / "benchmarks" / program), *words],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "MASTER_PORT": str(free_ports()), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def drawn(plot, *arguments) -> None:
    """Have a picture drawn into the folder that comes last, where matplotlib is installed."""
    pytest.importorskip("matplotlib")
    picture = arguments[-1] / "picture.png"
    plot(*arguments[:-1], picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.mpi
def test_contenders_learn_from_the_same_images_and_runs_that_have_ended_are_not_run_again(evidence, tmp_path, capsys):
    data, rows = write_stand_in(tmp_path, train=1600, test=300), tmp_path / "rows.jsonl"
    only = ["tau 2", "all-reduce", "ad-psgd", "sgp int8"]
    same = {"ranks": 2, "epochs": 2, "images": 1600, "factor": 1.0}
    there = {"contender": "tau 2", "seed": 0, "accuracy": [1.0, 2.0], **same}
    rows.write_text(json.dumps(there) + "\n")
    words = ["--rows", str(rows), "--data", str(data), "--images", "1600", "--epochs", "2", "--seeds", "1"]
    start("evidence.py", "accuracy", "--worker", *words, "--only", *only)
    found = {row["contender"]: row for row in rows_of(rows)}
    assert list(found) == only
    assert found.pop("tau 2") == there
    assert all(row["accuracy"][1] > max(60.0, row["accuracy"][0]) for row in found.values()), found
    assert all(row | same == row for row in found.values())
    evidence.accuracy.show(rows_of(rows))
    said = capsys.readouterr().out
    assert "2 ranks, 2 epochs of 1600 images" in said
    less = 2.0 - found["all-reduce"]["accuracy"][1]
    assert f"{less:.2f}" in next(line for line in said.splitlines() if "staleness 2" in line)


@pytest.mark.mpi
def test_every_mode_and_baseline_trains_beside_a_rank_that_is_slow(evidence, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    words = ["--rows", str(rows), "--epochs", "1", "--seeds", "1", "--compute", "0.001", "--disturbances", "slow"]
    only = [*evidence.stragglers.CONTENDERS, "post-local", "powersgd", "ddp fp16"]
    start("evidence.py", "stragglers", "--worker", *words, "--only", *only)
    found = rows_of(rows)
    assert [row["contender"] for row in found] == only
    assert all(row["accuracy"][-1] > 30 for row in found), found
    evidence.stragglers.show(found, 10.0)
    said = capsys.readouterr().out
    drawn(evidence.stragglers.plot, found, 10.0, tmp_path)
    assert "rank 3 takes 3 times as long" in said
    assert all(evidence.stragglers.LABELS[name] in said for name in only)


def test_what_is_tested_at_a_time_is_the_weighted_average_of_what_the_ranks_had_then(evidence):
    stragglers = evidence.stragglers
    random = np.random.default_rng(0)
    size = stragglers.flat(stragglers.network()).size
    one, two = (0.2 * random.standard_normal(size).astype(np.float32) for _ in range(2))

    def right(vector: np.ndarray) -> float:
        model = stragglers.network()
        vector_to_parameters(torch.from_numpy(vector), model.parameters())
        images, labels = stragglers.datasets()[1].tensors
        return 100 * (model(images).argmax(1) == labels).float().mean().item()

    tick = stragglers.TICK
    had = [[(0.5 * tick, 1.0, one), (2.5 * tick, 1.0, two)], [(1.5 * tick, 3.0, one)]]
    assert stragglers.over_time(had, 2.5 * tick) == [0.0, right(one), right(0.25 * two + 0.75 * one)]
    assert right(one) != right(0.25 * two + 0.75 * one) != right(two)


def test_the_time_to_a_goal_is_the_first_at_which_it_was_met_or_none(evidence):
    row = {"accuracy": [0.0, 50.0, 40.0, 60.0]}
    tick = evidence.stragglers.TICK
    assert [evidence.stragglers.reached(row, goal) for goal in (45.0, 55.0, 70.0)] == [2 * tick, 4 * tick, None]


def test_sleeps_are_the_same_for_all_contenders_and_one_rank_or_a_twentieth_of_all_steps_is_slow(evidence):
    row = {"seed": 1, "epochs": 5, "compute": 0.1, "ranks": 8, "disturbance": "slow", "contender": "sgp"}
    durations = evidence.stragglers.durations
    assert [set(durations(row, rank)) for rank in (2, 3)] == [{0.1}, {0.1 * 3.0}]
    stumbling = durations({**row, "disturbance": "hiccups"}, 2)
    assert (stumbling > 0.1).mean() == pytest.approx(0.05, abs=0.02)
    np.testing.assert_array_equal(stumbling, durations({**row, "disturbance": "hiccups", "contender": "async"}, 2))


@pytest.mark.mpi
def test_throughput_is_that_of_all_hosts(evidence, tmp_path, capsys):
    result = tmp_path / "result.json"
    words = ["--parameters", "1000", "--compute", "0.002", "--steps", "4", "--blocks", "1"]
    only = list(evidence.speed.CONTENDERS)
    start("slow_network.py", "--worker", str(result), *words, "--only", *only)
    figures = json.loads(result.read_text())
    assert {name: len(seconds) for name, seconds in figures["seconds"].items()} == dict.fromkeys(only, 4)
    assert all(min(seconds) >= 0.002 for seconds in figures["seconds"].values())
    row = {"network": "10", "hosts": 4, "mean_compute": 0.5, "seconds": {"ddp": [0.5, 1.5], "tau 1": [0.5, 0.5]}}
    assert evidence.speed.throughputs(row) == {"ddp": 2.0, "tau 1": 4.0}
    evidence.speed.show([row])
    assert "10 Gbit/s" in capsys.readouterr().out
    drawn(evidence.speed.plot, [row], tmp_path)


@pytest.mark.mpi
def test_local_adam_and_overlapped_push_sum_learn_to_translate_and_are_translated_by(evidence, tmp_path, capsys):
    words = {"red": "rot", "green": "gruen", "house": "Haus", "tree": "Baum", "is": "ist", "the": "das"}
    random = np.random.default_rng(0)
    for part, count in {"train": 400, "valid": 12}.items():
        chosen = random.choice(list(words), (count, 4))
        (tmp_path / f"{part}.en").write_text("\n".join(" ".join(row) for row in chosen) + "\n")
        (tmp_path / f"{part}.de").write_text("\n".join(" ".join(words[word] for word in row) for row in chosen) + "\n")
    rows = tmp_path / "rows.jsonl"
    options = ["--steps", "60", "--tokens", "100", "--sentences", "10", "--seeds", "1", "--rate", "none"]
    only = ["tau 1", "local sgd"]
    start(
        "evidence.py",
        "translation",
        "--worker",
        "--texts",
        str(tmp_path),
        "--rows",
        str(rows),
        *options,
        "--only",
        *only,
    )
    found = rows_of(rows)
    assert [row["contender"] for row in found] == only
    for row in found:
        assert row["loss"][-1] < 0.8 * row["loss"][0], row
        assert len(row["loss"]) == len(row["seconds"]) == 10
        assert row["bleu"] > 1.0
    evidence.translation.show(found)
    assert "local Adam" in capsys.readouterr().out
    drawn(evidence.translation.plot, found, tmp_path)
