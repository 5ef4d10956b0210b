"""This process among those on the same host."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from . import transport
from .channel import gather_once
from .job import world
from .job.process_groups import GroupComm

if TYPE_CHECKING:
    import torch

__all__ = ["local_device", "local_rank", "local_size"]

RANK_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
SIZE_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
TORCH_RANK, TORCH_SIZE = ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",)
"""What launchers of torch.distributed set. A program may set these names itself: with MPI they do not count."""


def local_rank() -> int:
    """Return the rank of this process among those on the same host.

    Some launchers set no variable that says so. Then this call is collective: all ranks must make it.
    """
    return _local(RANK_VARIABLES, TORCH_RANK, "local_rank()")[0]


def local_size() -> int:
    """Return the number of ranks on this host. See :func:`local_rank`."""
    return _local(SIZE_VARIABLES, TORCH_SIZE, "local_size()")[1]


def local_device() -> torch.device:
    """Return this rank's device and make it the current one: GPU local_rank % number of GPUs; without a GPU, the CPU.

    Where a host has more ranks than GPUs, ranks share GPUs. A rank that sees only one GPU (CUDA_VISIBLE_DEVICES set per
    rank) gets that one. But let all ranks see all GPUs of the host: only then can they copy from GPU to GPU.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return torch.device("cpu")
    device = torch.device("cuda", local_rank() % count)
    torch.cuda.set_device(device)
    return device


_found: tuple[int, int] | None = None


def _local(of_mpi: tuple[str, ...], of_torch: tuple[str, ...], call: str) -> tuple[int, int]:
    global _found
    if (own := world.rank_of_this_thread()) is not None:
        return own.local_rank, own.local_size
    comm = world.communicator()
    if comm.Get_size() == 1:
        return 0, 1
    for name in of_torch if isinstance(comm, GroupComm) else of_mpi:
        text = os.environ.get(name, "")
        if text.isdigit():
            return int(text), int(text)
    if _found is None:
        with transport.calling(call):
            labels = gather_once(comm, struct.pack("<q", transport.host_label(comm, None)), "comparing hosts")
        here = [rank for rank, label in enumerate(labels) if label == labels[comm.Get_rank()]]
        _found = here.index(comm.Get_rank()), len(here)
    return _found
