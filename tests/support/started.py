"""Commands that start ranks: with a time limit, and with programs that several launchers run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = Path(__file__).with_name("programs")


def program(folder: Path, name: str) -> str:
    """Return the file of a program: of a folder, or one that ranks of every launcher run."""
    own = folder / "programs" / name
    return str(own if own.exists() else SHARED / name)


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a command in the root of the repository, all it prints in one stream."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], limit: float, more: Callable[[], str] = str):
    """Wait for a command that :func:`start` has started.

    One that takes longer than ``limit`` seconds is a hang: it is ended with all it has started, and the test fails with
    its output.

    Args:
        more: gives what ranks have printed elsewhere.

    Returns:
        The finished process, output as text.
    """
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        end(process)
        output, _ = process.communicate()
        raise AssertionError(f"{process.args} hung for {limit:g} s:\n{(output + more())[-4000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def end(process: subprocess.Popen[str]) -> None:
    """End a command that has not ended, with all it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
