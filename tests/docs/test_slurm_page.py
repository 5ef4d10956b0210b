"""The batch scripts of docs/slurm.md do what the page says, with stand-ins for Slurm's programs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "slurm.md"
SCRIPTS = re.findall(r"^```text\n(#!?(?:/bin/bash|SBATCH).*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)


def stand_ins(folder: Path, **programs: str) -> dict[str, str]:
    """Put programs of these names on the PATH; ``$CALLS`` is a file in which they note how they were called."""
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "venv" / "bin" / "activate").touch()
    for name, body in {"module": "", "scontrol": 'echo "scontrol $*" >> $CALLS', **programs}.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": "41", "SLURM_CPUS_PER_TASK": "8", "CALLS": str(folder / "calls")}
    return {**os.environ, "PATH": path, **slurm}


def calls(folder: Path) -> list[str]:
    noted = folder / "calls"
    return noted.read_text().splitlines() if noted.exists() else []


def test_the_page_has_a_script_for_srun_and_one_for_mpirun():
    assert ["srun --mpi=pmix" in script for script in SCRIPTS] == [True, False]
    assert all("--signal=" in script for script in SCRIPTS)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True), (130, False)])
def test_the_script_for_srun_requeues_the_job_only_when_it_was_saved(tmp_path, code, requeued):
    environment = stand_ins(tmp_path, srun=f'echo "srun $* OMP_NUM_THREADS=$OMP_NUM_THREADS" >> $CALLS; exit {code}')
    done = subprocess.run(["bash", "-c", SCRIPTS[0]], cwd=tmp_path, env=environment, timeout=60)
    started = "srun --mpi=pmix --cpus-per-task=8 --kill-on-bad-exit=0 python train.py OMP_NUM_THREADS=8"
    assert calls(tmp_path) == [started, *(["scontrol requeue 41"] if requeued else [])]
    assert done.returncode == code


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True)])
def test_the_script_for_mpirun_ends_with_its_code(tmp_path, code, requeued):
    environment = stand_ins(tmp_path, mpirun=f"exit {code}")
    done = subprocess.run(["bash", "-c", SCRIPTS[1]], cwd=tmp_path, env=environment, timeout=60)
    assert calls(tmp_path) == (["scontrol requeue 41"] if requeued else [])
    assert done.returncode == code


def test_the_script_for_mpirun_passes_the_signal_on_and_waits_for_what_comes_of_it(tmp_path):
    """mpirun takes a while to end after the signal: the first `wait` is interrupted, and must not count."""
    saves = """
    trap 'echo signalled >> $CALLS; sleep 1; echo saved >> $CALLS; exit 75' USR1
    sleep 1
    kill -USR1 $PPID
    for second in {1..30}; do sleep 1; done
    """
    environment = stand_ins(tmp_path, mpirun=saves)
    done = subprocess.run(["bash", "-c", SCRIPTS[1]], cwd=tmp_path, env=environment, timeout=60)
    assert calls(tmp_path) == ["signalled", "saved", "scontrol requeue 41"]
    assert done.returncode == 75
