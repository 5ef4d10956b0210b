"""macOS and Windows lack functions that Linux has: imports, loopback ranks, the doctor and `pushsum run` do without."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from warm.python import warm_python

ROOT = Path(__file__).parents[1]

MAC = """
import os, signal
for name in ("sched_getaffinity", "sched_setaffinity"):
    delattr(os, name)
for name in ("sigwaitinfo", "sigtimedwait"):
    delattr(signal, name)
"""
WINDOWS = """
import builtins, os, signal, subprocess, tempfile, torch, numpy, mpi4py, json
real = builtins.__import__
def without(name, *args, **more):
    if name in ("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty"):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return real(name, *args, **more)
builtins.__import__ = without
for name in ("sched_getaffinity", "sched_yield", "killpg", "getuid", "geteuid", "getpgrp", "posix_spawn", "uname"):
    delattr(os, name)
for name in ("fork", "register_at_fork"):
    delattr(os, name)
kinds = ("SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGHUP", "SIGCHLD", "SIGKILL")
for name in (*kinds, "pthread_sigmask", "sigwaitinfo", "sigtimedwait", "sigwait", "SIG_BLOCK"):
    delattr(signal, name)
"""
TRAINS = """
import pkgutil, importlib, tempfile, torch, pushsum_opt as ps
for one in pkgutil.walk_packages(ps.__path__, "pushsum_opt."):
    if not one.name.endswith("__main__") and not one.name.endswith("memory.cuda"):
        importlib.import_module(one.name)
def rank(comm, folder):
    model = torch.nn.Linear(2, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with ps.PushSumOptimizer(inner, model, staleness=1, comm=comm) as optimizer:
        with ps.checkpoint.Saver(folder, optimizer, every=1) as saver:
            for step in range(2):
                optimizer.step()
                saver.after_step(step=step)
        return optimizer.round
with tempfile.TemporaryDirectory() as folder:
    assert ps.testing.run(2, lambda comm: rank(comm, folder)) == [2, 2]
"""
RUNS = """
import os, sys
from pushsum_opt.cli import main
assert main(["run", "--dry-run", "-np", "2", "-m", "this"]) == 0
from pushsum_opt.cli.supervise import supervise
assert supervise([sys.executable, "-c", "raise SystemExit(75)"], os.environ) == 75
from pushsum_opt.cli import doctor
doctor.probe = lambda seconds: {"error": "not started here"}
assert main(["doctor"]) == 1
"""


def succeeds(code: str) -> None:
    done = subprocess.run(
        [*warm_python(), "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_what_macos_lacks_everything_runs():
    succeeds(MAC + TRAINS + RUNS)


def test_without_what_windows_lacks_ranks_of_one_process_train_and_commands_answer():
    succeeds(WINDOWS + TRAINS + RUNS)
