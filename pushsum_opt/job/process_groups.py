"""Ranks that torch.distributed knows, such as those that torchrun starts, and communicators over them.

A communicator is a list of ranks and the store of torch.distributed, in which all processes of a job can leave words
for each other. No process group is made here, and the program's own are never used: it may make one before or after.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ..clock import Clock, monotonic
from ..errors import LaunchError

__all__ = ["GroupComm", "Job", "find_job", "is_group", "job_of_torch", "of_group", "size_of_default_group"]

JOIN = timedelta(minutes=30)
"""How long a process waits for the store of the job, which rank 0 or the launcher holds; as torch.distributed does."""
FILES_PER_PROCESS = 2
"""Open files for each process of a job: a connection, and in rank 0, which holds the store, one more."""
FEWEST_OWN_FILES, OWN_FILES = 32, 256
"""Open files that a process needs beside them at least, and those that are left for the program where there may be so
many."""


class Job:
    """All processes of a job, one of which is this one.

    Args:
        store: of torch.distributed; None where this process is alone.
        why: in words, why torch.distributed and not MPI.
    """

    def __init__(self, store: Any, rank: int, size: int, why: str) -> None:
        self.store = store
        self.rank = rank
        self.size = size
        self.why = why
        self.meshes: dict[tuple[int, ...], Any] = {}
        """Connections between processes, once there are any, by the ranks that they connect; made by the transport."""
        self._comms: dict[tuple[int, ...], GroupComm] = {}

    def comm(self, ranks: Sequence[int]) -> GroupComm:
        """Return the communicator of some ranks; for the same ranks always the same one."""
        wanted = tuple(ranks)
        if wanted not in self._comms:
            self._comms[wanted] = GroupComm(self, wanted)
        return self._comms[wanted]

    def everyone(self) -> GroupComm:
        return self.comm(range(self.size))


class GroupComm:
    """Some ranks of a job; has ``rank`` and ``size`` as an MPI communicator does.

    Args:
        ranks: their numbers in the job, in the order of their ranks here.
    """

    def __init__(self, job: Job, ranks: tuple[int, ...]) -> None:
        self.job = job
        self.ranks = ranks
        self.rank = ranks.index(job.rank)
        self.size = len(ranks)
        self.clock: Clock = monotonic

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"GroupComm(rank={self.rank}, size={self.size})"


_job: Job | None = None


def job_of_torch() -> Job | None:
    """Return the job of this process, if it has been found."""
    return _job


def find_job(why: str) -> Job:
    """Return the job of this process. The first call waits until the store of the job is there.

    Raises:
        LaunchError: torch has no distributed part, the launcher's variables are missing, too few open files are
            allowed, or the store does not answer.
    """
    global _job
    if _job is None:
        _job = _find(why)
    return _job


def _find(why: str) -> Job:
    import torch.distributed as dist

    if not dist.is_available():
        raise LaunchError("this build of torch has no torch.distributed: install another build, or start with mpirun")
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized():
        from .. import _torch_compat

        _allow_connections(dist.get_rank(), dist.get_world_size())
        return Job(_own_part(_torch_compat.default_store()), dist.get_rank(), dist.get_world_size(), why)
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if len(missing) == 4:
        return Job(None, 0, 1, why)  # nobody has started others
    if missing:
        raise LaunchError(
            f"torch.distributed carries the messages ({why}), and {', '.join(missing)} is not set: expected RANK, "
            "WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Start with torchrun, which sets them, or with mpirun"
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size == 1:
        return Job(None, 0, 1, why)
    _allow_connections(rank, size)
    try:
        store, rank, size = next(rendezvous("env://", timeout=JOIN))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise LaunchError(
            f"rank {rank}: the store of torch.distributed at {where} (MASTER_ADDR, MASTER_PORT) does not answer: "
            f"{error}. Is rank 0 there, and can this host reach its port?"
        ) from error
    return Job(_own_part(store), rank, size, why)


def _allow_connections(rank: int, size: int) -> None:
    """Let this process have a connection to every other one: raise its limit of open files, as far as it may.

    Raises:
        LaunchError: it may not have so many. Without this, processes would wait for connections that never come.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES_PER_PROCESS * size
    if soft == resource.RLIM_INFINITY or soft >= files + OWN_FILES:
        return
    most = files + OWN_FILES if hard == resource.RLIM_INFINITY else min(hard, files + OWN_FILES)
    if most < files + FEWEST_OWN_FILES:
        raise LaunchError(
            f"rank {rank}: a job of {size} processes over torch.distributed needs {files + FEWEST_OWN_FILES} open "
            f"files in each, and {hard} are allowed here (`ulimit -Hn`). Allow more (LimitNOFILE of a service, "
            "`--ulimit nofile` of a container), or start with mpirun: MPI connects only ranks that send to each other"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _own_part(store: Any) -> Any:
    """Return the part of a store that belongs to this library."""
    from torch.distributed import distributed_c10d

    return distributed_c10d.PrefixStore("pushsum_opt", store)


def is_group(comm: Any) -> bool:
    """Tell whether this is a process group of torch.distributed."""
    dist = sys.modules.get("torch.distributed")  # a program that has one has imported it
    return dist is not None and dist.is_available() and isinstance(comm, dist.ProcessGroup)


def of_group(group: Any) -> GroupComm:
    """Return the communicator of a process group's ranks. It sends nothing over the group itself."""
    import torch.distributed as dist

    return find_job("comm= is a process group").comm(dist.get_process_group_ranks(group))


def size_of_default_group() -> int:
    """Return how many processes the program's default process group has; 0 where it has made none."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return 0
    return int(dist.get_world_size())
