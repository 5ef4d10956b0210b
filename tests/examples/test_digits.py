"""The example does what its page promises.

The commands of the pages start it as a user does (tests/docs); here Python has imported torch before it begins.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from warm.python import FOR_EXAMPLES, warm_python

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "digits.py"


def run(*command: str) -> str:
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def accuracies(output: str) -> list[float]:
    return [float(text) for text in re.findall(r"test accuracy ([\d.]+)%", output)]


@pytest.mark.parametrize("staleness", ["0", "2", "unbounded"])
def test_four_ranks_reach_97_percent(staleness, tmp_path):
    checkpoint = tmp_path / "digits.pt"
    words = [str(EXAMPLE), "--staleness", staleness, "--checkpoint", str(checkpoint), "--state", str(tmp_path)]
    output = run(sys.executable, "-m", "pushsum_opt", "run", "-np", "4", *warm_python(*FOR_EXAMPLES), *words)
    assert accuracies(output)[-1] >= 97.0
    assert "4 ranks on 1 host" in output
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["optimizer"]["push_sum"]["size"] == 4


@pytest.mark.parametrize("staleness", ["0", "1"])
def test_three_ranks_reach_97_percent_when_the_fourth_is_killed_in_epoch_3(staleness, tmp_path):
    program = Path(__file__).parent / "programs" / "dying_digits.py"
    words = [*warm_python(*FOR_EXAMPLES), str(program), "--staleness", staleness, "--on-loss", "continue"]
    words += ["--state", str(tmp_path)]
    output = run(sys.executable, "-m", "pushsum_opt", "run", "--survive", "-np", "4", *words)
    assert re.search(r"rank 2 is lost, and the others go on from round (49|5\d):", output)
    assert len(accuracies(output)) == 15
    assert accuracies(output)[-1] >= 97.0


def test_a_spare_takes_the_place_of_a_rank_that_is_killed_in_epoch_3_and_four_ranks_reach_97_percent(tmp_path):
    program = Path(__file__).parent / "programs" / "dying_digits.py"
    words = [*warm_python(*FOR_EXAMPLES), str(program), "--on-loss", "continue", "--state", str(tmp_path)]
    output = run(sys.executable, "-m", "pushsum_opt", "run", "-np", "4", "--spares", "1", *words)
    assert re.search(r"rank 2 is lost, and the others go on from round (49|5\d):", output)
    assert re.search(r"a spare has taken the place of rank 2, from round \d+: 4 ranks train now", output)
    assert len(accuracies(output)) == 15
    assert accuracies(output)[-1] >= 97.0


def test_one_rank_needs_no_launcher():
    assert len(accuracies(run(*warm_python(*FOR_EXAMPLES), str(EXAMPLE), "--epochs", "2"))) == 2


def test_the_example_fits_on_one_page():
    assert len(EXAMPLE.read_text().splitlines()) <= 90
