"""Starts MPI in a process of its own, and describes it as JSON: starting a broken MPI can hang or crash.

Under mpirun these child processes are the ranks of the job, and each hears from all.
"""

from __future__ import annotations

import ctypes
import json
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..processes import end_group

__all__ = ["describe_mpi", "probe"]

_CUDA = 0  # MPIX_GPU_SUPPORT_CUDA in MPICH's mpi_proto.h


def probe(seconds: float, command: tuple[str, ...] = (sys.executable, "-m", __name__)) -> dict[str, Any]:
    """Describe the MPI library from a child process; ``{"error": why}`` when that fails or takes too long."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        close_fds=False,  # MPICH's mpirun talks to a rank through a file descriptor that the rank inherits
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end_group(child)
        child.communicate()
        return {"error": f"MPI did not start within {seconds:g} s"}
    try:
        found = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        found = None
    if child.returncode == 0 and isinstance(found, dict):
        return found
    last = [line.strip() for line in err.splitlines() if line.strip()][-1:]
    return {"error": "; ".join([f"starting MPI ended with exit code {child.returncode}", *last])}


def describe_mpi() -> dict[str, Any]:
    """Start MPI in this process and describe its library and the ranks that it sees. Collective.

    Raises:
        ImportError, RuntimeError: mpi4py is missing, or it finds no MPI library.
    """
    from mpi4py import MPI

    levels = {
        MPI.THREAD_SINGLE: "SINGLE",
        MPI.THREAD_FUNNELED: "FUNNELED",
        MPI.THREAD_SERIALIZED: "SERIALIZED",
        MPI.THREAD_MULTIPLE: "MULTIPLE",
    }
    vendor, version = MPI.get_vendor()
    library = _first_line(MPI.Get_library_version())
    mine = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": next((one.version for one in metadata.distributions(name="torch")), "none"),
        "library": library,
    }
    return {
        "library": library,
        "vendor": vendor,
        "version": ".".join(map(str, version)),
        "path": _library_path(),
        "thread_level": levels[MPI.Query_thread()],
        "largest_tag": MPI.COMM_WORLD.Get_attr(MPI.TAG_UB),
        "fault_tolerance": _has_fault_tolerance(MPI),
        "cuda": _takes_cuda_buffers(_library_path()),
        "size": MPI.COMM_WORLD.Get_size(),
        "ranks": MPI.COMM_WORLD.allgather(mine),
    }


def _first_line(text: str) -> str:
    """Shorten the version text of a library: "Open MPI v5.0.11, package: ..." or "MPICH Version:\\t5.0.2 ..."."""
    line = text.strip("\0 \n").splitlines()[0].split(", package")[0]
    return " ".join(line.replace("Version:", " ").split())


def _has_fault_tolerance(MPI: Any) -> bool:
    """Try to revoke a communicator of one: mpi4py always has the method, but not every library does."""
    alone = MPI.COMM_SELF.Dup()
    alone.Set_errhandler(MPI.ERRORS_RETURN)
    try:
        alone.Revoke()
        return bool(alone.Is_revoked())
    except (AttributeError, NotImplementedError, MPI.Exception):
        return False


def _library_path() -> str | None:
    """Find the file of the MPI library that this process has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    files = sorted({line.split()[-1] for line in maps.splitlines() if "/libmpi" in line})
    return files[0] if files else None


def _takes_cuda_buffers(path: str | None) -> bool:
    """Ask the library itself whether it was built to read GPU memory."""
    if path is None:
        return False
    library = ctypes.CDLL(path)
    if hasattr(library, "MPIX_GPU_query_support"):
        answer = ctypes.c_int(0)
        library.MPIX_GPU_query_support(_CUDA, ctypes.byref(answer))
        return bool(answer.value)
    return hasattr(library, "MPIX_Query_cuda_support") and bool(library.MPIX_Query_cuda_support())


if __name__ == "__main__":
    print(json.dumps(describe_mpi()))
