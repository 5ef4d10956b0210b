"""However a job that ``pushsum run`` started ends: one clear exit code, and no rank left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.terminal import AtTerminal

pytestmark = pytest.mark.mpi

RANKS = 3
SECONDS = 240

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


class Job:
    """A script on three ranks, what it prints, and the folder in which they write their process ids."""

    def __init__(self, folder: Path) -> None:
        self.pids = folder / "pids"
        self.pids.mkdir()
        self._script, self._output = folder / "script.py", folder / "output"

    def command(self, then: str = SLEEP, before: str = "") -> list[str]:
        self._script.write_text(SCRIPT.format(before=before, then=then))
        return [sys.executable, "-m", "pushsum_opt", "run", "-np", str(RANKS), str(self._script), str(self.pids)]

    def start(self, before: str = "", *, group: bool = False) -> subprocess.Popen[bytes]:
        """Start it without a terminal; return when every rank is there."""
        with self._output.open("wb") as output:
            child = subprocess.Popen(
                self.command(before=before),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=group,
            )
        self.wait_for_ranks(self.printed)
        return child

    def printed(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_for_ranks(self, printed: Callable[[], str]) -> None:
        deadline = time.monotonic() + SECONDS
        while len([file for file in self.pids.iterdir() if not file.suffix]) < RANKS:
            assert time.monotonic() < deadline, f"the ranks did not start:\n{printed()}"
            time.sleep(0.05)

    def run(self, then: str) -> int:
        """Run it to its end; return the exit code."""
        return subprocess.run(self.command(then), timeout=SECONDS, capture_output=True).returncode


@pytest.fixture
def job(tmp_path):
    one = Job(tmp_path)
    yield one
    for pid in alive(one.pids):  # only after a failure
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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
    child = job.start(group=True)
    send(child.pid, number)
    assert child.wait(SECONDS) == code
    assert all_ended(job.pids)


def test_ctrl_c_at_the_terminal_ends_every_rank_with_130(job):
    with AtTerminal(job.command()) as child:
        job.wait_for_ranks(child.seen)
        child.type(b"\x03")
        assert child.wait(SECONDS) == 130
    assert all_ended(job.pids)


def test_ctrl_c_in_training_prints_no_traceback(job):
    child = job.start("import torch, pushsum_opt as ps; held = ps.PushSum([torch.zeros(3)])", group=True)
    child.send_signal(signal.SIGINT)
    assert child.wait(SECONDS) == 130
    assert all_ended(job.pids)
    assert "Traceback" not in job.printed(), job.printed()


@pytest.mark.parametrize("code", [0, 1, 75])
def test_exit_code_of_every_rank_is_passed_on(job, code):
    assert job.run(f"raise SystemExit({code})") == code


@pytest.mark.parametrize("code", [1, 75])
def test_exit_code_of_one_rank_is_passed_on(job, code):
    assert job.run(f"raise SystemExit({code} if comm.rank == 1 else 0)") == code
    assert all_ended(job.pids)


def test_user_signal_reaches_every_rank_so_that_they_can_save_and_be_requeued(job):
    # Ranks end through MPI_Finalize: MPICH kills the others of one that ends without it, and the code may then be 9.
    child = job.start("import signal; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))")
    child.send_signal(signal.SIGUSR1)
    assert child.wait(SECONDS) == 75
    assert all_ended(job.pids)


def test_killed_rank_ends_the_others_with_an_error(job):
    child = job.start()
    os.kill(int((job.pids / "1").read_text()), signal.SIGKILL)
    assert child.wait(SECONDS) not in (0, 75, 130)
    assert all_ended(job.pids)
