"""What the tables share: rows of JSON, figures with their spread, and real ranks."""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from emulated_hosts import EmulatedHosts

Row = dict[str, Any]
EVIDENCE = Path(__file__).resolve().parents[1] / "evidence.py"


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Return mean (least to most)."""
    values = list(values)
    shown = [f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def read_rows(path: Path) -> list[Row]:
    """Return the runs that have ended: a JSON object a line. No file: none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def missing(wanted: list[Row], path: Path) -> list[Row]:
    """Return the runs that are wanted and have not ended: no row has all that they say."""
    there = read_rows(path)
    return [run for run in wanted if not any(all(row.get(key) == value for key, value in run.items()) for row in there)]


def add_row(path: Path, row: Row) -> None:
    with path.open("a") as file:
        print(json.dumps(row), file=file)


def mpirun(table: str, hosts: EmulatedHosts, arguments: argparse.Namespace, passed_on: Sequence[str]) -> None:
    """Run a table's ``work`` on real ranks, with some of the arguments."""
    words = [str(EVIDENCE), table, "--worker"]
    for name in passed_on:
        value = getattr(arguments, name)
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    # More ranks than cores: whoever waits lets others run.
    environment = {**hosts.environment, "OMPI_MCA_mpi_yield_when_idle": "1"}
    if hosts.agent is None:  # other jobs of this machine have ports too
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            environment["MASTER_PORT"] = str(listener.getsockname()[1])
    done = subprocess.run(hosts.mpirun(words), env=environment)
    if done.returncode:
        sys.exit(f"{table} on {hosts.ranks} ranks ended with code {done.returncode}")
