"""One line at the start: what runs where, and what it costs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import Protocol

from ..channel import Channel
from ..installed import install_command
from ..memory import Memory
from ..transport import Transport

__all__ = ["Host", "compose", "crowded_links", "hosts"]


class RunFacts(Protocol):
    """What the start line tells of; a PushSum has it."""

    @property
    def size(self) -> int: ...

    @property
    def memory(self) -> Memory: ...

    @property
    def transport(self) -> Transport: ...

    @property
    def graph(self) -> object: ...

    @property
    def staleness(self) -> int | str: ...

    def bytes_per_round(self) -> float: ...


@dataclass
class Host:
    """One host of the job."""

    ranks: int = 0
    threads: int = 0
    cores: set[int] = field(default_factory=set)
    """The cores on which at least one rank may run: a launcher that binds ranks gives each a part of them."""


def hosts(channel: Channel, threads: int, lanes: int = 1) -> list[Host]:
    """Collective. Return the hosts of the job, rank 0's first.

    Args:
        threads: this rank's number of threads.
        lanes: ranks of a host that each rank of the channel stands for.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    mine = [socket.gethostname(), threads, sorted(cores)]
    found: dict[str, Host] = {}
    for name, its_threads, its_cores in channel.gather_objects(mine, "counting hosts"):
        host = found.setdefault(name, Host())
        host.ranks += lanes
        host.threads += its_threads * lanes
        host.cores.update(its_cores)
    return list(found.values())


def compose(facts: RunFacts, hosts: list[Host], *, has_model: bool, moments: int | None = None, steps: int = 1) -> str:
    """Return the line for rank 0.

    Args:
        hosts: what :func:`hosts` returned.
        has_model: whether buffers and frozen parameters are known.
        moments: bytes of the optimizer's state that travels with the parameters; None where no such state does.
        steps: local steps from one round to the next.
    """
    mode = {0: "synchronous", "unbounded": "asynchronous"}.get(facts.staleness, f"staleness {facts.staleness}")
    parts = [
        f"{_count(sum(host.ranks for host in hosts), 'rank')} on {_count(len(hosts), 'host')}",
        f"graph {facts.graph!r}",
        mode,
        f"{facts.memory.name} memory over {facts.transport.name}",
        f"{_bytes(facts.bytes_per_round())} sent per rank {'and step' if steps == 1 else f'every {steps} steps'}",
    ]
    if moments is not None and facts.size > 1:
        parts.append(
            f"adaptive='corrected': exp_avg travels too, {_bytes(moments)} beside the parameters, and messages take as "
            "much more memory"
        )
    crowded = max(hosts, key=lambda host: host.threads / len(host.cores))
    if facts.transport.name != "loopback" and facts.size > 1 and crowded.threads > len(crowded.cores):
        parts.append(_crowd(crowded))
    if facts.size > 1 and facts.memory.lacks_numba:
        why = "eight bits take six times the processor time where numba is missing or cannot be used"
        parts.append(f"{why}: {install_command('int8')}")
    if not has_model:
        parts.append("no model given: buffers and frozen parameters stay as they are on each rank")
    return "; ".join(parts)


def crowded_links(facts: RunFacts, hosts: list[Host]) -> str | None:
    """Return what to warn about where the ranks of a host each send their whole model through its network card."""
    most = max(host.ranks for host in hosts)
    if most == 1 or len(hosts) == 1 or facts.transport.name == "loopback":
        return None
    reduced = 2 * (len(hosts) - 1) / len(hosts) * facts.memory.nbytes
    return (
        f"up to {most} ranks share a host and each sends its own model: up to "
        f"{_bytes(most * facts.bytes_per_round())} per network card and step, where a hierarchical all-reduce sends "
        f"{_bytes(reduced)}. With within_host='gradients' (or 'ddp') a host is one participant and sends "
        f"{_bytes(facts.bytes_per_round())}"
    )


def _crowd(host: Host) -> str:
    threads, ranks, cores = host.threads, host.ranks, len(host.cores)
    text = f"{_count(threads, 'thread')} of {_count(ranks, 'rank')} share {_count(cores, 'core')} of one host"
    fewer = max(1, len(host.cores) // host.ranks)
    return text + (f": set OMP_NUM_THREADS={fewer}" if host.threads > host.ranks * fewer else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
