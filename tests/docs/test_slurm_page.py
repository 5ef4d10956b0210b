"""The batch scripts of the pages do what these say, with stand-ins for Slurm's programs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def scripts(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```text\n(#!?(?:/bin/bash|SBATCH).*?)^```", text, re.S | re.M)


SCRIPTS = scripts("slurm.md")


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


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (130, 0, False), (75, 9, True), (1, 0, True), (1, 2, True), (1, 3, False)],
)
def test_the_script_for_lost_nodes_starts_on_all_hosts_and_is_requeued_some_times(tmp_path, code, restarts, requeued):
    (script,) = scripts("rank-loss.md")
    environment = stand_ins(
        tmp_path,
        pushsum=f'echo "pushsum $*" >> $CALLS; exit {code}',
        scontrol='[ "$1" = show ] && printf "n1\\nn2\\n" || echo "scontrol $*" >> $CALLS',
    )
    environment |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, timeout=60)
    started = "pushsum run --restarts 5 -np 32 --host n1:4,n2:4 train.py"
    assert calls(tmp_path) == [started, *(["scontrol requeue 41"] if requeued else [])]
    assert done.returncode == code
