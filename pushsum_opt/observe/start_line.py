"""One line at the start: what runs where, and what it costs."""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import Protocol

from ..agreement import gather_objects
from ..memory import Memory
from ..transport import Transport
from ..transport.waiting import Waiter

__all__ = ["compose", "hosts"]


class Exchange(Protocol):
    """What the start line tells of; a PushSum is one."""

    size: int
    rank: int
    memory: Memory
    transport: Transport

    @property
    def graph(self) -> object: ...

    @property
    def staleness(self) -> int | str: ...

    def bytes_per_round(self) -> float: ...


def hosts(transport: Transport, waiter: Waiter) -> Counter[str]:
    """Count the ranks on each host. Collective."""
    names = gather_objects(transport, waiter, socket.gethostname().encode(), "counting hosts")
    return Counter(name.decode() for name in names)


def compose(exchange: Exchange, ranks_by_host: Counter[str], threads: int, *, has_model: bool) -> str:
    """Return the line for rank 0.

    Args:
        threads: threads per rank.
        has_model: whether buffers and frozen parameters are known.
    """
    hosts_text = _count(len(ranks_by_host), "host")
    mode = {0: "synchronous", "unbounded": "asynchronous"}.get(exchange.staleness, f"staleness {exchange.staleness}")
    parts = [
        f"{_count(exchange.size, 'rank')} on {hosts_text}",
        f"graph {exchange.graph!r}",
        mode,
        f"{exchange.memory.name} memory over {exchange.transport.name}",
        f"{_bytes(exchange.bytes_per_round())} sent per rank and step",
    ]
    crowded = max(ranks_by_host.values(), default=1) * threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if exchange.transport.name == "mpi" and crowded > cores and exchange.size > 1:
        fewer = max(1, cores // max(ranks_by_host.values()))
        parts.append(f"{crowded} threads on {cores} cores per host: set OMP_NUM_THREADS={fewer}")
    if not has_model:
        parts.append("no model given: buffers and frozen parameters stay as they are on each rank")
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
