"""Parts of a communicator: who shares a host, and communicators of some of the ranks."""

from __future__ import annotations

import hashlib
import socket
import struct
from pathlib import Path
from typing import Any

from ..job.ending import THIS
from ..job.process_groups import GroupComm
from .base import Transport
from .loopback import LoopbackComm, LoopbackTransport

__all__ = ["host_label", "split"]


def host_label(comm: Any, ranks_per_host: int | None) -> int:
    """Return a number that ranks have in common if and only if they share a host.

    Args:
        ranks_per_host: take so many consecutive ranks as a host; None: those with the same host name and boot.
    """
    rank: int = comm.Get_rank()
    if isinstance(comm, LoopbackComm):
        ranks_per_host = ranks_per_host or comm.world.local_size
    if ranks_per_host is not None:
        return rank // ranks_per_host
    here = f"{socket.gethostname()} {_boot()}".encode()
    return int.from_bytes(hashlib.blake2b(here, digest_size=7).digest(), "little")


def _boot() -> str:
    """Return what tells two hosts of the same name apart, where the system says it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def split(comm: Any, color: int) -> Any:
    """Collective. Return a communicator of the ranks that passed the same number, in the order of their ranks.

    When ranks have died, those that live revoke it: some may wait on it for others that have gone to a recovery.
    """
    part = _split(comm, color)
    process = comm.process if isinstance(comm, LoopbackComm) else THIS
    if process.survival is not None:
        process.parts.append(part)
    return part


def _split(comm: Any, color: int) -> Any:
    """Collective. See :func:`split`.

    MPI waits here without a deadline: all ranks have just met, in :func:`pushsum_opt.channel.gather_once`.
    """
    if isinstance(comm, LoopbackComm):
        return _split_loopback(comm, color)
    if isinstance(comm, GroupComm):
        return _split_group(comm, color)
    try:
        return comm.Split(color, comm.Get_rank())
    except Exception as error:
        from .mpi import lost_by

        lost = lost_by(comm, error)
        if lost is None:
            raise
        raise lost from error


def _split_loopback(comm: LoopbackComm, color: int) -> LoopbackComm:
    transport = LoopbackTransport(comm)
    members = _of_color(transport, color)
    part = comm.world.part((transport.context, color), members)
    return LoopbackComm(part, members.index(comm.rank), comm.process)


def _split_group(comm: GroupComm, color: int) -> GroupComm:
    from .torch_distributed import TorchTransport

    transport = TorchTransport(comm)
    members = _of_color(transport, color)
    transport.close()
    return comm.job.comm([comm.ranks[rank] for rank in members])


def _of_color(transport: Transport, color: int) -> list[int]:
    """Collective. Return the ranks that passed the same number."""
    ticket, rows = transport.gather(struct.pack("<q", color), "splitting a communicator")
    while not ticket.done:
        transport.poll(1.0)
    colors = [struct.unpack("<q", row.tobytes())[0] for row in rows]
    return [rank for rank, its in enumerate(colors) if its == color]
