"""The recipe learns from folders of JPEGs, counts every image once, and goes on where a checkpoint was made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from support.ports import free_ports
from warm.python import warm_python

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "imagenet.py"
VALIDATION = 101  # odd: ranks have shares of different sizes
SMALL = [
    "--model", "resnet8", "--size", "16", "--crop-from", "0.6", "--workers", "0", "--lr", "0.8", "--warm-up", "0.5",
    "--batch", "8", "--schedule", "cosine",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Handwritten digits as ImageNet is laid out: 480 to train on, 101 to evaluate on."""
    root = tmp_path_factory.mktemp("jpegs")
    digits = load_digits()
    for k, (pixels, label) in enumerate(zip(digits.images[:581], digits.target, strict=False)):
        folder = root / ("val" if k < VALIDATION else "train") / f"n{label:08}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((20, 24 if k % 2 else 20))
        image.save(folder / f"n{label:08}_{k}.{'JPEG' if k % 3 else 'jpg'}")
    return root


def start(*words: str, ranks: int = 2, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "MASTER_PORT": str(free_ports()), **variables}
    launch = [sys.executable, "-m", "pushsum_opt", "run", "-np", str(ranks)] if ranks > 1 else []
    command = [*launch, *warm_python(), str(EXAMPLE), *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def train(result: Path, data: Path, *options: str, ranks: int = 2, **variables: str) -> list[dict]:
    done = start(str(data), *SMALL, "--json", str(result), *options, ranks=ranks, **variables)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return [json.loads(line) for line in result.read_text().splitlines()]


def without_time(line: dict) -> dict:
    return {name: value for name, value in line.items() if name not in ("seconds", "images_per_second")}


@pytest.mark.slow
@pytest.mark.mpi
def test_two_ranks_learn_and_a_run_that_was_stopped_goes_on_with_the_same_figures(data, tmp_path):
    options = ["--epochs", "2", "--staleness", "1", "--wire", "int8", "--hybrid", "ar/1p", "--dense-epochs", "0.5"]
    options += ["--accumulate", "2", "--checkpoints", str(tmp_path / "saved"), "--save-every", "20"]
    whole = train(tmp_path / "whole.json", data, *options)
    assert [line["epoch"] for line in whole] == [1, 2]
    for line in whole:
        assert line["evaluated"] == VALIDATION
        assert line["top1"] * VALIDATION == pytest.approx(round(line["top1"] * VALIDATION), abs=1e-3)
        assert line["top1"] <= line["top5"] <= 1
        assert line["images_per_second"] > 0
    assert whole[-1]["train_loss"] < whole[0]["train_loss"]
    assert whole[-1]["top1"] > 0.4, "one of ten is chance"

    *_, newest = sorted((tmp_path / "saved").iterdir())
    shutil.rmtree(newest)  # that of the end, after 30 steps: the one before it is of step 20, in the second epoch
    resumed = train(tmp_path / "resumed.json", data, *options)
    assert [without_time(line) for line in resumed] == [without_time(line) for line in whole[1:]]


@pytest.mark.slow
@pytest.mark.mpi
def test_ddp_trains_the_same_and_counts_every_image_once(data, tmp_path):
    first, last = train(tmp_path / "lines.json", data, "--baseline", "ddp", "--epochs", "2", "--accumulate", "2")
    assert (first["mode"], first["ranks"], first["evaluated"]) == ("ddp", 2, VALIDATION)
    assert last["train_loss"] < first["train_loss"]


@pytest.mark.slow
@pytest.mark.mpi
def test_hosts_of_two_ranks_learn_with_two_peers_at_first(data, tmp_path):
    options = ["--within-host", "gradients", "--hybrid", "2p/1p", "--dense-epochs", "1", "--autocast", "bfloat16"]
    variables = {"PUSHSUM_RANKS_PER_HOST": "2"}
    first, last = train(tmp_path / "lines.json", data, *options, "--epochs", "2", ranks=4, **variables)
    assert (last["ranks"], last["evaluated"]) == (4, VALIDATION)
    assert last["train_loss"] < first["train_loss"]


def test_one_rank_needs_no_launcher_and_reads_with_workers(data, tmp_path):
    (line,) = train(tmp_path / "lines.json", data, "--workers", "1", "--epochs", "1", ranks=1)
    assert (line["ranks"], line["evaluated"]) == (1, VALIDATION)


@pytest.mark.parametrize(
    ("missing", "options", "said"),
    [
        (
            "torchvision",
            ["--model", "resnet50"],
            "the one that fits this torch: `pip install torchvision torch==",
        ),
        ("tensorboard", ["--model", "resnet8", "--tensorboard", "curves"], "`pip install tensorboard`"),
    ],
)
def test_what_is_not_installed_is_named(missing, options, said, data, tmp_path):
    (tmp_path / f"{missing}.py").write_text("raise ImportError('not here')")
    done = start(str(data), *options, "--workers", "0", ranks=1, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_images_is_named(tmp_path):
    done = start(str(tmp_path), "--workers", "0", ranks=1)
    assert done.returncode == 1
    assert f"rank 0: there are no images in {tmp_path / 'train'}: expected {tmp_path}/train/CLASS/*.JPEG" in done.stderr
    assert "Traceback" not in done.stderr
