"""Which hosts answer: a quick try of the very program by which mpirun reaches them."""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

__all__ = ["agent_of", "answering", "is_here"]

SECONDS = 10.0
"""A host that has not answered by then counts as lost."""

_PARAMETERS = ("plm_ssh_agent", "plm_rsh_agent")
_LAUNCHERS = ("-launcher-exec", "--launcher-exec", "-bootstrap-exec", "--bootstrap-exec")
_VARIABLES = (
    "PRTE_MCA_plm_ssh_agent", "OMPI_MCA_plm_ssh_agent", "OMPI_MCA_plm_rsh_agent", "HYDRA_LAUNCHER_EXEC",
    "HYDRA_BOOTSTRAP_EXEC",
)  # fmt: skip


def agent_of(options: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return the program by which mpirun starts something on another host: srun in a Slurm job, else ssh.

    Unless told otherwise, by an option or a variable of the MPI library.

    >>> agent_of(["--prtemca", "plm_ssh_agent", "/opt/agent -q"], {})
    ['/opt/agent', '-q']
    """
    for name, value in pairwise(options):
        if name in (*_PARAMETERS, *_LAUNCHERS):
            return _first(value)
    for name in _VARIABLES:
        if environ.get(name):
            return _first(environ[name])
    if "SLURM_JOB_ID" in environ and shutil.which("srun", path=environ.get("PATH")):
        return ["srun", "--quiet", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist"]
    return ["ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]


def _first(value: str) -> list[str]:
    """Return the first program that exists, of ``ssh : rsh``."""
    several = [shlex.split(one) for one in value.split(" : ")]
    return next((words for words in several if words and shutil.which(words[0])), several[0])


def answering(names: Collection[str], agent: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return the hosts that answer within some seconds, in their order. All are tried at the same time."""
    tries = {name: _begin([*agent, name, "true"], environ) for name in names if not is_here(name)}
    deadline = time.monotonic() + SECONDS
    found = []
    for name in names:
        trial = tries.get(name)
        if name not in tries or (trial is not None and _succeeds(trial, deadline)):
            found.append(name)
    return found


def _begin(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None


def _succeeds(trial: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        return trial.wait(max(0.0, deadline - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        trial.kill()
        trial.wait()
        return False


def is_here(name: str) -> bool:
    """Tell whether a name or an address is this machine's."""
    if name in ("localhost", socket.gethostname(), socket.gethostname().partition(".")[0]):
        return True
    if not name.replace(".", "").isdecimal():
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((name, 0))
        except OSError:
            return False
    return True
