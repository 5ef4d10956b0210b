"""wire_passes.py packs and merges in every wire_dtype, and prints a line for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "benchmarks" / "wire_passes.py"


def test_every_wire_has_a_line_of_figures():
    command = [sys.executable, str(SCRIPT), "--tensors", "3", "--size", "600", "--repeat", "1"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()
    assert said[0].startswith("3 tensors, 0.0018 M parameters")
    assert [line[:16].strip() for line in said[2:]] == ["float32", "bfloat16", "int8", "int8, by torch"]
    assert all(float(word) > 0 for line in said[2:] for word in line[16:].split())
