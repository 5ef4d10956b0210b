"""The table of AdamW is made by real ranks, goes on where it stopped, and compares with all-reduce."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from warm.python import warm_python

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "examples" / "benchmarks" / "adam_table.py")
WARM = """
import os, runpy, subprocess, sys
script, begins = sys.argv[1], subprocess.run

def with_warm_ranks(words, **more):
    place = words.index(script)
    return begins([*words[:place], *{warm}, *words[place:]], **more)

subprocess.run = with_warm_ranks
sys.path.insert(0, os.path.dirname(script))
del sys.argv[0]
runpy.run_path(script, run_name="__main__")
"""
"""Runs a script in a Python that has imported torch, and so the ranks that the script starts."""


def table(rows: Path, *options: str) -> str:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ["PATH"]])
    warm = warm_python()
    command = [*warm, "-c", WARM.format(warm=warm), SCRIPT, "--rows", str(rows), *options]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.mpi
def test_every_contender_gives_a_row_and_a_table_that_was_cut_short_goes_on(tmp_path):
    rows = tmp_path / "rows.jsonl"
    options = ["--ranks", "2", "--steps", "3", "--seeds", "1", "--rates", "4e-3", "--staleness", "0"]
    options += ["--only", "ddp", "one process", "corrected"]
    said = table(rows, *options)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    losses = {(row["contender"], row["staleness"]): row["loss"] for row in found}
    assert sorted(losses) == [("corrected", 0), ("ddp", 0), ("one process", 0)]
    assert losses["ddp", 0] == pytest.approx(losses["one process", 0], abs=1e-4)
    assert "text, 2 ranks, 3 steps, 4 samples per rank and step, clipped to norm 1" in said
    line = next(line for line in said.splitlines() if "gossip, corrected, staleness 0" in line)
    assert f"{losses['corrected', 0]:.4f}" in line
    assert f"{100 * (losses['corrected', 0] / losses['ddp', 0] - 1):+.1f} %" in line

    kept = rows.read_text().splitlines()
    rows.write_text("\n".join(kept[:-1]) + "\n")
    table(rows, *options)
    assert [json.loads(line)["loss"] for line in rows.read_text().splitlines()] == [
        json.loads(line)["loss"] for line in kept
    ]
