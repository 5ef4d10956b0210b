"""What a run is: versions, host, graph, mode and options, for whoever reads the numbers later."""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from ...job import world

__all__ = ["FORMAT", "describe"]

FORMAT = 1
"""The number of the format of files of metrics."""

MOST_ROUNDS = 64
"""So many rounds of the graph are written at most."""
MOST_EDGES = 4096
"""So many edges of one rank are written at most: a graph of many peers is written for fewer rounds."""

PACKAGES = ("pushsum_opt", "torch", "numpy", "mpi4py", "cupy")


def describe(optimizer: Any, push_sum: Any, every: int) -> dict[str, Any]:
    """Return facts about this rank's part of the run, as plain values. Local.

    The command line is not among them: it may hold secrets, and reports are handed on.

    Args:
        optimizer: the wrapper, the push-sum itself, or None where the wrapper is no more.
        every: rounds from one row to the next.
    """
    options = push_sum.member.options
    wrapped = getattr(optimizer, "optimizer", None)
    rounds, whole = _rounds(push_sum)
    return {
        "format": FORMAT,
        "run": push_sum.member.name,
        "rank": push_sum.members[push_sum.rank],
        "size": push_sum.size,
        "participant": push_sum.participant,
        "participants": push_sum.participants,
        "host": world.hostname(),
        "pid": os.getpid(),
        "began": time.time(),
        "every": every,
        "program": Path(sys.argv[0]).name if sys.argv else "",
        "versions": {"python": platform.python_version(), **_versions()},
        "system": f"{platform.system()} {platform.machine()}",
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "optimizer": None if wrapped is None else type(wrapped).__name__,
        "algorithm": _name_of(getattr(optimizer, "_algorithm", None)),
        "gossip_every": getattr(optimizer, "_gossip_every", 1),
        "within_host": getattr(optimizer, "_within_host", None),
        "graph": repr(push_sum.graph),
        "rounds": rounds,
        "rounds_are_a_period": whole,
        "staleness": options.staleness,
        "data_weight": push_sum.initial_weight,
        "wire_dtype": None if options.wire_dtype is None else str(options.wire_dtype),
        "nonfinite": options.nonfinite,
        "rate_correction": options.rate_correction,
        "on_loss": push_sum.on_loss,
        "memory": push_sum.memory.name,
        "transport": push_sum.transport.name,
        "bytes_per_round": push_sum.bytes_per_round(),
    }


def _versions() -> dict[str, str]:
    loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in PACKAGES}
    found = {name: str(version) for name, version in loaded.items() if version is not None}
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None:
        found["MPI library"] = mpi.Get_library_version().split(",")[0].splitlines()[0].strip()
    return found


def _rounds(push_sum: Any) -> tuple[list[list[tuple[int, float]]], bool]:
    """Return (out-peer, share) of this rank's messages in each of the first rounds; whether the graph repeats them."""
    graph, participants = push_sum.graph, push_sum.participants
    wanted = min(graph.window(participants), MOST_ROUNDS)
    found: list[list[tuple[int, float]]] = []
    for round in range(wanted):
        found.append(list(graph.gives(push_sum.participant, participants, round)))
        if sum(map(len, found)) >= MOST_EDGES:
            break
    return found, len(found) == graph.period(participants)


def _name_of(algorithm: Any) -> str | None:
    return None if algorithm is None else type(algorithm).__name__
