"""Every framework's example trains on four real ranks, and the framework sees none of the other three."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
from warm.python import FOR_EXAMPLES, warm_python

pytestmark = [pytest.mark.slow, pytest.mark.mpi]

ROOT = Path(__file__).resolve().parents[2]
SPY = Path(__file__).with_name("programs") / "spy.py"
SIZE, EPOCHS, ACCUMULATE = 4, 12, 2
# The frameworks themselves are imported on every rank: they may look at it.
EXAMPLES = {  # name: what it needs, what it resumes from
    "plain_loop": ("torch", "last.pt"),
    "lightning_fabric": ("lightning", "last.ckpt"),
    "lightning_trainer": ("lightning", "last.ckpt"),
    "accelerate_loop": ("accelerate", "."),
    "hf_trainer": ("transformers", f"checkpoint-{EPOCHS * 12}"),
}


@dataclass
class Run:
    """What a run left behind."""

    folder: Path
    reports: list[dict]

    def output(self, rank: int, stream: str = "out") -> str:
        return (self.folder / f"{rank}.{stream}").read_text()

    def files(self, rank: int) -> list[Path]:
        return [path for path in (self.folder / f"rank_{rank}").rglob("*") if path.is_file()]

    def accuracy(self) -> float:
        return float(re.findall(r"test accuracy ([\d.]+)%", self.output(0))[-1])


def run(name: str, folder: Path, *arguments: str, hostile: str = "no") -> Run:
    example = ROOT / "examples" / "frameworks" / f"{name}.py"
    words = [*warm_python(*FOR_EXAMPLES), str(SPY), str(example), str(folder), hostile, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for variable in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        environment.pop(variable, None)
    done = subprocess.run(
        [sys.executable, "-m", "pushsum_opt", "run", "-np", str(SIZE), *words, "--accumulate", str(ACCUMULATE)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    said = [done.stdout, *(path.read_text()[-2000:] for path in sorted(folder.glob("*.err")))]
    assert done.returncode == 0, "\n".join(said)
    return Run(folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)])


@pytest.fixture(scope="module", params=EXAMPLES)
def name(request):
    needed = EXAMPLES[request.param][0]
    assert find_spec(needed) is not None, f"{needed} is missing: pip install 'pushsum-opt[frameworks]'"
    return request.param


@pytest.fixture(scope="module")
def trained(name, tmp_path_factory):
    return run(name, tmp_path_factory.mktemp(name) / "run", "--epochs", str(EPOCHS))


def check_shards(reports: list[dict], epochs: int) -> None:
    """In every epoch the ranks see different images, each of them once."""
    for report in reports:
        assert len(report["epochs"]) == epochs
    for passes in zip(*(report["epochs"] for report in reports), strict=True):
        shards = [[index for batch in batches for index in batch] for batches in passes]
        for shard in shards:
            assert len(set(shard)) == len(shard) == 1437 // SIZE
        for one, another in combinations(shards, 2):
            assert set(one).isdisjoint(another)


def check_rounds(reports: list[dict], before: int = 0) -> None:
    """Every rank made one local step and one round for each ACCUMULATE batches; an epoch's last step may have fewer."""
    for report in reports:
        expected = sum(-(-len(batches) // ACCUMULATE) for batches in report["epochs"])
        assert expected > 0
        assert report["rounds"] == [before + expected]
        assert report["steps"]["SGD"] == expected
        assert report["steps"]["PushSumOptimizer"] == expected


def check_alone(reports: list[dict]) -> None:
    for report in reports:
        assert report["others"] == []
        assert not report["distributed"]


def check_writers(done: Run) -> None:
    assert done.files(0)
    assert "pushsum_opt: 4 ranks on 1 host" in done.output(0, "err")
    for rank in range(1, SIZE):
        assert done.files(rank) == []
        assert done.output(rank) == ""
        assert not re.search(r"it/s|available|Trainer", done.output(rank, "err")), "a progress bar or a greeting"


def test_shards_are_disjoint_in_every_epoch(trained):
    check_shards(trained.reports, EPOCHS)


def test_every_epoch_is_shuffled_anew(trained):
    for report in trained.reports:
        assert len({str(batches) for batches in report["epochs"]}) == EPOCHS


def test_every_rank_makes_one_round_for_each_step(trained):
    check_rounds(trained.reports)


def test_no_mass_is_lost(trained):
    assert sum(report["push_weights"][0] for report in trained.reports) == pytest.approx(SIZE, rel=1e-12)


def test_nothing_else_averages_over_the_ranks(trained):
    check_alone(trained.reports)


def test_rank_0_alone_writes_and_prints(trained):
    check_writers(trained)


def test_the_average_of_the_models_is_good(trained):
    assert trained.accuracy() > 90


def test_rank_0s_checkpoint_goes_on_on_every_rank_in_a_slurm_job_too(name, trained, tmp_path):
    """The next epoch only, with its own order of the data, from a model that is as good as it was."""
    resume = trained.folder / "rank_0" / "out" / EXAMPLES[name][1]
    again = run(name, tmp_path / "run", "--epochs", str(EPOCHS + 1), "--resume", str(resume), hostile="slurm")
    check_shards(again.reports, 1)
    check_rounds(again.reports, before=trained.reports[0]["rounds"][0])
    check_alone(again.reports)
    check_writers(again)
    for before, after in zip(trained.reports, again.reports, strict=True):
        assert after["epochs"][0] not in before["epochs"]
    assert again.accuracy() > 90


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_fits_on_a_page(name):
    lines = (ROOT / "examples" / "frameworks" / f"{name}.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 72
