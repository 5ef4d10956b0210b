"""The example trains in every mode, writes what it says, and says what to install when the data is missing."""

from __future__ import annotations

import gzip
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.ports import free_ports
from warm.python import warm_python

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "fashion_mnist.py"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def start(*command: str, limit: float = 240.0) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MASTER_PORT": str(free_ports()),
    }
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)


def train(result: Path, *options: str, ranks: int = 4) -> list[dict]:
    words = [str(EXAMPLE), "--json", str(result), *options]
    done = start(sys.executable, "-m", "pushsum_opt", "run", "-np", str(ranks), *warm_python(), *words)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return [json.loads(line) for line in result.read_text().splitlines()]


def write_idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes(), 1))


def write_stand_in(folder: Path, train: int = 2000, test: int = 500) -> Path:
    """Ten kinds of images in the form of Fashion-MNIST's files: noise, and a bright band whose place is the label."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        labels = random.integers(0, 10, count)
        images = random.integers(0, 120, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[4 + 2 * label : 6 + 2 * label] += 100
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The first real images where they are installed, else a stand-in. To read all takes every rank a second."""
    folder = tmp_path_factory.mktemp("data")
    if not all((INSTALLED / f"{name}-ubyte.gz").is_file() for name in FILES):
        return write_stand_in(folder)
    for name in FILES:
        count, shape = (2000 if name.startswith("train") else 500), ((28, 28) if "idx3" in name else ())
        with gzip.open(INSTALLED / f"{name}-ubyte.gz") as file:
            values = file.read(4 * (2 + len(shape)) + count * math.prod(shape))[4 * (2 + len(shape)) :]
        write_idx(folder / f"{name}-ubyte.gz", np.frombuffer(values, np.uint8).reshape(count, *shape))
    return folder


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("staleness 0", ["--graph", "Ring"]),
        ("staleness 1", ["--staleness", "1"]),
        ("staleness unbounded", ["--staleness", "unbounded"]),
        ("ddp", ["--baseline", "ddp"]),
    ],
)
def test_four_ranks_learn_in_every_mode(mode, options, data, tmp_path):
    limits = ["--limit-train", "2000", "--limit-test", "500", "--epochs", "3", "--batch", "8"]
    lines = train(tmp_path / "lines.json", "--data", str(data), *limits, "--seed", "3", *options)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert (line["mode"], line["seed"], line["ranks"]) == (mode, 3, 4)
        assert line["seconds"] > 0
    assert lines[-1]["test_accuracy"] >= 0.6
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_one_rank_reads_idx_files_of_any_size_and_needs_no_launcher(tmp_path):
    write_stand_in(tmp_path, train=300, test=77)
    result = tmp_path / "lines.json"
    done = start(*warm_python(), str(EXAMPLE), "--data", str(tmp_path), "--epochs", "1", "--json", str(result))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "epoch 1:" in done.stderr, "the bar"
    (line,) = [json.loads(text) for text in result.read_text().splitlines()]
    assert line["ranks"] == 1
    # Every test image is counted once: the accuracy is a number of 77ths.
    assert line["test_accuracy"] * 77 == pytest.approx(round(line["test_accuracy"] * 77), abs=1e-3)


def test_missing_data_is_an_error_that_names_the_file_and_the_package(tmp_path):
    done = start(*warm_python(), str(EXAMPLE), "--data", str(tmp_path))
    assert done.returncode == 1
    assert f"there is no {tmp_path / 'train-images-idx3-ubyte.gz'}" in done.stderr
    assert "apt-get install dataset-fashion-mnist" in done.stderr
    assert "Traceback" not in done.stderr
