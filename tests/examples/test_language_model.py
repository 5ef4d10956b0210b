"""The example learns with every algorithm, counts its bytes, and goes on where a checkpoint was made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.ports import free_ports
from warm.python import warm_python

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "language_model.py"
SMALL = [
    "--steps", "24", "--validate-every", "12", "--validate-on", "100", "--batch", "4", "--length", "16",
    "--width", "16", "--layers", "1", "--heads", "2",
]  # fmt: skip
PARAMETERS = (256 + 16) * 16 + 12 * 16 * 16 + 5 * 16 + 6 * 16


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A folder of 60 small files: to read the standard library takes every rank a second."""
    folder = tmp_path_factory.mktemp("text")
    for k in range(60):
        lines = [f"def f_{k}_{j}(x):\n    return x + {j}\n\n" for j in range(20)]
        (folder / f"{k:02}.py").write_text("".join(lines))
    return folder


def run(result: Path, text: Path, *options: str, ranks: int = 4) -> list[dict]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "MASTER_PORT": str(free_ports())}
    words = [*warm_python(), str(EXAMPLE), *SMALL, "--text", str(text), "--json", str(result), *options]
    launch = [sys.executable, "-m", "pushsum_opt", "run", "-np", str(ranks)] if ranks > 1 else []
    done = subprocess.run([*launch, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return [json.loads(line) for line in result.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("options", "models", "width"),
    [
        ("sgp --gossip-every 2 --wire bfloat16 --staleness 1 --graph Ring", 12, 2),
        ("noloco --gossip-every 6 --outer-lr 1.0 --outer-momentum 0.3", 4, 4),
        ("diloco --gossip-every 6 --wire bfloat16", 4 * 1.5, 4),
        ("ddp", 24 * 1.5, 4),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_four_ranks_learn_with_every_algorithm_and_count_their_bytes(options, models, width, text, tmp_path):
    lines = run(tmp_path / "lines.json", text, "--algorithm", *options.split())
    assert [(line["step"], line["ranks"]) for line in lines] == [(12, 4), (24, 4)]
    assert lines[1]["loss"] < lines[0]["loss"] < 5.5, "bytes at random have 5.545 nats"
    expected = models * PARAMETERS * width
    assert expected <= lines[1]["bytes_sent"] < 1.1 * expected + 5000 * (width == 2), "headers beside it"


@pytest.mark.slow
@pytest.mark.mpi
def test_a_run_goes_on_from_its_checkpoint_with_the_same_figures(text, tmp_path):
    options = ["--algorithm", "noloco", "--gossip-every", "5", "--save-every", "15", "--checkpoints", str(tmp_path)]
    whole = run(tmp_path / "whole.json", text, *options, ranks=2)
    saved = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(saved) == 1, "in round 3, step 15, of 4 rounds and 24 steps"
    resumed = run(tmp_path / "resumed.json", text, *options, ranks=2)
    assert resumed == whole[1:]


def test_one_rank_needs_no_launcher(text, tmp_path):
    lines = run(tmp_path / "lines.json", text, "--algorithm", "noloco", ranks=1)
    assert [(line["step"], line["bytes_sent"]) for line in lines] == [(12, 0), (24, 0)]
