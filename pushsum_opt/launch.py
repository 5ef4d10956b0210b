"""Who has started this process, and so which network carries its messages: MPI or torch.distributed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from . import settings

__all__ = ["Choice", "TORCH_VARIABLES", "choose", "has_mpi4py"]

MPI_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK")
"""What launchers of MPI set: mpirun of Open MPI and MPICH, mpiexec, and srun with ``--mpi=pmix`` or ``pmi2``."""
TORCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What launchers of torch.distributed set: torchrun, accelerate, Kubeflow's PyTorchJob, SageMaker, Ray Train."""
TORCHRUN = "TORCHELASTIC_RUN_ID"
SLURM = "SLURM_STEP_NUM_TASKS"
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


def has_mpi4py() -> bool:
    """Tell whether mpi4py is installed; imports nothing."""
    return importlib.util.find_spec("mpi4py") is not None
