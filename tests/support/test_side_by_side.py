"""The commands of ``tox`` beside each other: none is left out, and none fails unseen."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support import side_by_side


@pytest.mark.parametrize("codes", [(0,), (0, 0, 0), (3, 0, 0), (0, 3, 0), (0, 0, 3), (3, 3, 3)])
def test_every_command_runs_and_one_that_fails_fails_the_whole_by_name(codes):
    words = []
    for number, code in enumerate(codes):
        words += ["--", sys.executable, "-S", "-c", f"print('number', {number}); raise SystemExit({code})"]
    command = [sys.executable, side_by_side.__file__, *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == (1 if any(codes) else 0)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED: ")]
    for number, code in enumerate(codes):
        assert f"number {number}\n" in done.stdout
        assert any(f"print('number', {number})" in line.replace("'\"'\"'", "'") for line in failed) == bool(code)
