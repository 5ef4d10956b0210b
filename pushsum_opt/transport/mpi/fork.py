"""Warns of a fork after MPI has started, on hosts whose network card reads and writes memory by itself.

Such a card uses physical addresses that MPI has registered. A fork makes pages copy-on-write: the process that writes
first gets a new page, and the card goes on with the old one. Then messages are lost, or a process crashes
(``ibv_fork_init(3)`` has the details). Most drivers of today protect registered memory, within limits. Over shared
memory and TCP there is no such problem.
"""

from __future__ import annotations

import glob
import os

from ...log import log

__all__ = ["watch"]

DEVICES: tuple[str, ...] = ("/dev/infiniband/uverbs*", "/dev/cxi*", "/dev/hfi1_*", "/dev/kgni*")
"""What a network that registers memory is reached by: InfiniBand, RoCE and EFA; Slingshot; Omni-Path; Aries."""

_watching = False
_warned = False


def watch(rank: int, size: int) -> None:
    """Warn from now on, once, when this process forks. Idempotent; without such a network nothing is installed.

    Starting a program (``subprocess``, ``os.system``, workers by "forkserver" or "spawn") is not a fork in this sense,
    except with a ``preexec_fn``.

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
