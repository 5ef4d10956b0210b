"""Notices a fork after MPI has started, on a host whose network does not take it well.

Such networks read and write the memory of a process by themselves, at physical addresses that MPI has registered. A
fork makes pages copy-on-write: whoever writes first gets a new page, and the network goes on with the old one. Messages
are then lost, or a process crashes (``ibv_fork_init(3)`` has the details). Most drivers of today protect what is
registered, at a cost and with limits; over shared memory and TCP nothing happens.
"""

from __future__ import annotations

import glob
import os

from ..log import log

__all__ = ["watch"]

DEVICES: tuple[str, ...] = ("/dev/infiniband/uverbs*", "/dev/cxi*", "/dev/hfi1_*", "/dev/kgni*")
"""What a network that registers memory is reached by: InfiniBand, RoCE and EFA; Slingshot; Omni-Path; Aries."""

_watching = False
_warned = False


def watch(rank: int, size: int) -> None:
    """Warn from now on, once, when this process forks. Idempotent; without such a network nothing is installed.

    Programs that are started (``subprocess``, ``os.system``, workers by "forkserver" or "spawn") are no forks, except
    with a ``preexec_fn``.

    Args:
        rank: who speaks.
        size: the number of ranks; one rank alone exchanges nothing.
    """
    global _watching
    if _watching or size == 1 or not hasattr(os, "register_at_fork"):
        return
    found = sorted(path for pattern in DEVICES for path in glob.glob(pattern))
    if found:
        _watching = True
        os.register_at_fork(before=lambda: _warn(rank, found))


def _warn(rank: int, devices: list[str]) -> None:
    global _warned
    if _warned:
        return
    _warned = True  # before the fork, so that the child knows it too
    log.warning(
        "rank %d: this process forks after MPI has started, on a host with %s: such networks write to memory that a "
        "fork moves away, and messages can be lost or the rank crash. If a DataLoader forks its workers, give it "
        'multiprocessing_context="forkserver" (or "spawn"), or num_workers=0; start other programs with subprocess. '
        "(Said once)",
        rank,
        ", ".join(devices),
    )
