"""What real ranks write is what `pushsum top` and `pushsum report` read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from warm.python import FOR_EXAMPLES, warm_python

from pushsum_opt.cli import main
from pushsum_opt.observe.report.reading import Folder

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> str:
    command = [sys.executable, "-m", "pushsum_opt", "run", "-np", "3", *warm_python(*FOR_EXAMPLES), *words]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_the_run_of_the_page_is_shown_and_explained(tmp_path, capsys):
    example = str(ROOT / "examples" / "slow_rank.py")
    run(example, "--metrics", str(tmp_path), "--steps", "30", "--seconds", "0.002", "--staleness", "1")
    made = Folder(tmp_path).look()
    assert made.ended()
    assert {log.rows[-1]["steps_total"] for log in made.ranks.values()} == {30}
    assert made.about["versions"].keys() >= {"torch", "mpi4py", "MPI library"}
    assert all(
        set(log.rows[-1]["span_seconds_total"]) == {"data", "forward and backward"} for log in made.ranks.values()
    )
    assert main(["top", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "3 ranks, Ring(), staleness=1" in shown
    assert len(re.findall(r"^ +[012] .*ended *$", shown, re.MULTILINE)) == 3
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "-o", str(page)]) == 0
    assert "slow_rank.py on 3 ranks" in page.read_text(encoding="utf-8")


def test_the_benchmark_of_what_seeing_costs_runs(tmp_path):
    said = run(str(ROOT / "examples" / "benchmarks" / "observing.py"), "--blocks", "2", "--tensors", "2")
    assert re.search(r"^both +\d+ us +-?\d+ us +-?[\d.]+%$", said, re.MULTILINE)
