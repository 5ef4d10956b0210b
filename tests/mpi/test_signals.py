"""However a job that ``pushsum run`` started ends: one clear exit code, and no rank left behind."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi

RANKS = 3
SECONDS = 60

# Each rank writes down its process id when all have started, and then does what the test asks for.
SCRIPT = """
import os, sys, time
from pathlib import Path
from mpi4py import MPI

comm = MPI.COMM_WORLD
{before}
comm.Barrier()
file = Path(sys.argv[1], str(comm.rank))
file.with_suffix(".new").write_text(str(os.getpid()))
file.with_suffix(".new").rename(file)
{then}
"""
SLEEP = "time.sleep(120)"


@pytest.fixture
def job(tmp_path):
    """The command that runs a script on three ranks, and the folder in which they write their process ids."""
    pids = tmp_path / "pids"
    pids.mkdir()

    def command(then=SLEEP, before=""):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(before=before, then=then))
        return [sys.executable, "-m", "pushsum_opt", "run", "-np", str(RANKS), str(script), str(pids)]

    command.pids = pids
    yield command
    for pid in alive(pids):  # only after a failure
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def started(pids: Path) -> None:
    """Wait until every rank is there."""
    deadline = time.monotonic() + SECONDS
    while len([file for file in pids.iterdir() if not file.suffix]) < RANKS:
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.05)


def alive(pids: Path) -> list[int]:
    """Return the ranks that still run; what has ended and only waits to be reaped does not."""
    running = []
    for pid in (int(file.read_text()) for file in pids.iterdir() if not file.suffix):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                running.append(pid)
    return running


def all_ended(pids: Path) -> bool:
    deadline = time.monotonic() + 10
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pids)


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to pushsum run", "to its process group"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_every_rank_and_the_code_says_which(job, number, code, send):
    child = subprocess.Popen(
        job(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    started(job.pids)
    send(child.pid, number)
    assert child.wait(SECONDS) == code
    assert all_ended(job.pids)


def test_ctrl_c_at_the_terminal_ends_every_rank_with_130(job):
    child, terminal = pty.fork()
    words = job()
    if child == 0:
        os.execv(words[0], words)
    started(job.pids)
    os.write(terminal, b"\x03")
    with contextlib.suppress(OSError):  # the other side of the terminal is closed
        while os.read(terminal, 4096):
            pass
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert all_ended(job.pids)


def test_ctrl_c_in_training_prints_no_traceback(job):
    before = "import torch, pushsum_opt as ps; held = ps.PushSum([torch.zeros(3)])"
    child = subprocess.Popen(
        job(before=before),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started(job.pids)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=SECONDS)
    assert child.returncode == 130
    assert "Traceback" not in out, out
    assert all_ended(job.pids)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_exit_code_of_every_rank_is_passed_on(job, code):
    assert subprocess.run(job(f"raise SystemExit({code})"), timeout=SECONDS, capture_output=True).returncode == code


@pytest.mark.parametrize("code", [1, 75])
def test_exit_code_of_one_rank_is_passed_on(job, code):
    then = f"raise SystemExit({code} if comm.rank == 1 else 0)"
    assert subprocess.run(job(then), timeout=SECONDS, capture_output=True).returncode == code
    assert all_ended(job.pids)


def test_user_signal_reaches_every_rank_so_that_they_can_save_and_be_requeued(job):
    # Ranks end through MPI_Finalize: MPICH kills the others of one that ends without it, and the code may then be 9.
    before = "import signal; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))"
    child = subprocess.Popen(
        job(before=before), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    started(job.pids)
    child.send_signal(signal.SIGUSR1)
    assert child.wait(SECONDS) == 75
    assert all_ended(job.pids)


def test_killed_rank_ends_the_others_with_an_error(job):
    child = subprocess.Popen(job(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started(job.pids)
    os.kill(int((job.pids / "1").read_text()), signal.SIGKILL)
    assert child.wait(SECONDS) not in (0, 75, 130)
    assert all_ended(job.pids)
