"""The table of slow links goes on where it stopped, compares with DDP, and can be drawn."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from warm.python import warm_python

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "benchmarks" / "slow_links_table.py"
SMALL = ["--steps", "12", "--batch", "2", "--width", "16", "--rates", "1e-2"]


def table(rows: Path, *options: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*warm_python(), str(SCRIPT), "--rows", str(rows), *options]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slow_links_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(rows: Path) -> list[dict]:
    return [json.loads(line) for line in rows.read_text().splitlines()]


@pytest.mark.slow
def test_every_contender_gives_a_row_and_a_table_that_was_cut_short_goes_on(tmp_path):
    rows, drawing = tmp_path / "rows.jsonl", tmp_path / "drawing.svg"
    only = ["ddp", "sgp", "sgp/4", "noloco/4", "diloco/4"]
    table(rows, *SMALL, "--ranks", "2", "--only", *only[:2])
    said = table(rows, *SMALL, "--ranks", "2", "--wire", "float32", "bfloat16", "--only", *only, "--svg", str(drawing))
    assert said.count("seconds") == 6, "two of the eight runs were there"
    found = {(row["who"], row["wire"]): row["bytes"] for row in read(rows)}
    assert list(found) == [
        ("ddp", "float32"), ("sgp", "float32"), ("sgp", "bfloat16"), ("sgp/4", "float32"), ("sgp/4", "bfloat16"),
        ("noloco/4", "float32"), ("noloco/4", "bfloat16"), ("diloco/4", "float32"),
    ]  # fmt: skip
    ddp = found["ddp", "float32"]  # a ring of two sends one model per step
    assert found["diloco/4", "float32"] == ddp // 4
    assert found["noloco/4", "float32"] == pytest.approx(ddp / 4, rel=0.02)
    assert found["noloco/4", "bfloat16"] == pytest.approx(ddp / 8, rel=0.03)
    assert found["sgp", "float32"] == pytest.approx(ddp, rel=0.02)
    texts = [text.text for text in ElementTree.parse(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert "noloco/4 bfloat16 (0.7, 0.5)" in texts
    assert "1 MB" in texts


def test_the_best_rate_is_compared_with_that_of_ddp_over_the_same_seeds(tmp_path):
    rows = tmp_path / "rows.jsonl"
    same = {"wire": "float32", "outer": "", "ranks": 4, "steps": 10, "batch": 8, "width": 32, "seconds": 1.0}
    runs = [
        ("ddp", 0.01, 0, 2.0, 600), ("ddp", 0.02, 0, 1.9, 600), ("ddp", 0.02, 1, 2.1, 600),
        ("sgp", 0.01, 0, 2.5, 400), ("sgp", 0.02, 0, 2.2, 400), ("sgp", 0.01, 1, 1.0, 400), ("sgp", 0.02, 1, 2.2, 400),
        ("sgp/8", 0.02, 0, 1.957, 50),
    ]  # fmt: skip
    with rows.open("w") as file:
        for who, rate, seed, loss, sent in runs:
            row = {**same, "who": who, "rate": rate, "seed": seed, "loss": loss, "bytes": sent}
            file.write(json.dumps(row) + "\n")
    module = script()
    ddp, sgp, rarer = module.lines(read(rows))
    assert (ddp["who"], ddp["rate"], module.difference(ddp), module.share(ddp)) == ("ddp", 0.02, "+0.0 %", "100.00 %")
    assert (sgp["who"], sgp["rate"], module.difference(sgp), module.share(sgp)) == ("sgp", 0.02, "+10.0 %", "66.67 %")
    assert (rarer["who"], module.difference(rarer), module.share(rarer)) == ("sgp/8", "+3.0 %", "8.33 %")
    assert "2.2000 2.200..2.200" in module.described(sgp)


def test_the_picture_has_the_best_outer_rates_of_each_contender():
    module = script()
    same = {"ranks": 4, "steps": 10, "batch": 8, "width": 32, "wire": "float32"}
    found = [
        {**same, "who": who, "outer": outer, "rates": dict(enumerate(losses))}
        for who, outer, losses in [
            ("noloco/50", "0.7,0.5", [2.5, 2.0]), ("noloco/50", "1.0,0.5", [2.1, 2.1]), ("sgp", "", [3.0])
        ]
    ]  # fmt: skip
    assert [(line["who"], line["outer"]) for line in module.best_outer(found)] == [
        ("noloco/50", "0.7,0.5"),
        ("sgp", ""),
    ]
