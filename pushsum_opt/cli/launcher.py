"""Finds the ``mpirun`` of this environment, and tells which MPI library it belongs to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["INTEL_MPI", "MPICH", "OPEN_MPI", "Launcher", "find_launcher", "identify"]

OPEN_MPI = "Open MPI"
MPICH = "MPICH"
INTEL_MPI = "Intel MPI"

_VERSIONS = (  # what `mpirun --version` says; PRRTE is the launcher inside Open MPI 5
    (OPEN_MPI, re.compile(r"Open MPI\)\s+v?([\d.]+)")),
    (OPEN_MPI, re.compile(r"(?:prterun|PRRTE)\D+([\d.]+)")),
    (INTEL_MPI, re.compile(r"Intel\(R\) MPI Library.*?Version ([\d.]+)", re.DOTALL)),
    (MPICH, re.compile(r"HYDRA build details:.*?Version:\s+([\d.]+)", re.DOTALL)),
)


@dataclass(frozen=True)
class Launcher:
    """One ``mpirun``: its path, whose it is ("unknown" when its ``--version`` says nothing known) and its version."""

    path: str
    vendor: str
    version: str

    def __str__(self) -> str:
        return f"{self.vendor} {self.version} ({self.path})".replace("  ", " ")


def find_launcher(environ: Mapping[str, str], executable: str = sys.executable) -> Launcher | None:
    """Find the ``mpirun`` that goes with this Python: the one beside it, else the first on PATH; None without one."""
    # The link is not followed: a virtual environment's python is a link to one that has no mpirun beside it.
    beside = str(Path(executable).parent)
    for folder in (beside, environ.get("PATH", os.defpath)):
        for name in ("mpirun", "mpiexec"):
            path = shutil.which(name, path=folder)
            if path is not None:
                return Launcher(path, *identify(_version_text(path, environ)))
    return None


def identify(text: str) -> tuple[str, str]:
    """Tell vendor and version from what ``mpirun --version`` printed."""
    for vendor, pattern in _VERSIONS:
        found = pattern.search(text)
        if found:
            return vendor, found.group(1).rstrip(".")
    return "unknown", ""


def _version_text(path: str, environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, env=dict(environ))
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
