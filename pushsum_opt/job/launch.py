"""Who has started this process, and so which network carries its messages: MPI or torch.distributed."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from .. import settings
from . import joined, process_groups

__all__ = ["Choice", "TORCH_VARIABLES", "choose", "chosen", "has_mpi4py", "launched_size"]

MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK")
"""What launchers of MPI set: mpirun of Open MPI and MPICH, mpiexec, and srun with ``--mpi=pmix`` or ``pmi2``."""
TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What launchers of torch.distributed set: torchrun, accelerate, Kubeflow's PyTorchJob, SageMaker, Ray Train."""
TORCHRUN = "TORCHELASTIC_RUN_ID"
SLURM = "SLURM_STEP_NUM_TASKS"
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", SLURM)
NONE, NEITHER = "no launcher", "no launcher, and no mpi4py"


@dataclass(frozen=True)
class Choice:
    """Which network, and why in words."""

    torch: bool
    why: str


def choose(environ: Mapping[str, str], *, mpi_size: int = 0, torch_size: int = 0) -> Choice:
    """Return which network carries the messages of this process.

    The launcher that is nearest to the process counts: ``srun torchrun`` and ``mpirun torchrun`` start torchrun on each
    host, and torchrun the ranks. ``PUSHSUM_TRANSPORT=mpi`` or ``torch`` decides without a look at anything else.

    Args:
        environ: the environment of the process.
        mpi_size: processes in ``MPI.COMM_WORLD``, where MPI runs already.
        torch_size: processes in the default process group, where the program has made one.
    """
    wish = settings.read(dict(environ)).transport
    if wish != "auto":
        return Choice(wish == "torch", f"PUSHSUM_TRANSPORT={wish}")
    there = all(environ.get(name, "") for name in TORCH_VARIABLES)
    if TORCHRUN in environ and there:
        return Choice(True, "started by torchrun")
    found = next((name for name in MPI_VARIABLES if name in environ), None)
    if found is not None:
        return Choice(False, f"started by a launcher of MPI, which set {found}")
    if mpi_size > 1:
        return Choice(False, "the program has started MPI")
    if torch_size > 1:
        return Choice(True, "the program has started torch.distributed")
    if there:
        return Choice(True, "RANK, WORLD_SIZE and MASTER_ADDR are set")
    if SLURM in environ or has_mpi4py():
        return Choice(False, NONE)
    return Choice(True, NEITHER)


_choice: Choice | None = None


def chosen() -> Choice:
    """Return what carries the messages of this process; once it is known, it stays so."""
    global _choice
    if _choice is None:
        mpi = sys.modules["mpi4py.MPI"].COMM_WORLD.Get_size() if joined.mpi_runs() else 0
        _choice = choose(os.environ, mpi_size=mpi, torch_size=process_groups.size_of_default_group())
    return _choice


def launched_size(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the variable in which a launcher says how many ranks it has started, and that number."""
    # torchrun's variable has a common name: other programs set it too, and start nothing.
    for name in (*SIZE_VARIABLES, *(("WORLD_SIZE",) if TORCHRUN in environ else ())):
        text = environ.get(name, "")
        if text.isdigit():
            return name, int(text)
    return None


def has_mpi4py() -> bool:
    """Tell whether mpi4py is installed; imports nothing."""
    return importlib.util.find_spec("mpi4py") is not None
