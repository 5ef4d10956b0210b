"""Reads the files that ranks have written, also those of ranks that were killed while they wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError
from ..bounded_file import OLDER
from .writing import FORMAT

__all__ = ["Recording", "newest_run"]

PATTERN = "timeline-*.jsonl"


@dataclass
class Recording:
    """What is known of one rank's timeline before its events are read."""

    paths: list[Path]
    """The older file, if any, and the newer one."""

    described: dict[str, Any]
    """Who wrote it: ``run``, ``rank``, ``host``, and so on."""

    meetings: list[dict[str, Any]] = field(default_factory=list)
    """When this rank came to and left the barriers at the start, and at the end."""

    threads: dict[int, str] = field(default_factory=dict)
    """Names of threads, by their numbers in the file."""

    first: int = 0
    """The time of the first event, in ns of this rank's clock; without any, that of the last meeting."""

    last: int = 0
    """The time of the last event, or meeting."""

    torn: int = 0
    """Lines that cannot be read: a kill may tear the last one."""

    @property
    def rank(self) -> int:
        """Its number when the job was started."""
        rank: int = self.described["rank"]
        return rank

    def events(self) -> Iterator[list[Any]]:
        """Read the events: time in ns, kind, thread, and what belongs to the kind."""
        for line in _lines(self.paths):
            if isinstance(line, list) and len(line) > 2:
                yield line


def newest_run(directory: Path) -> tuple[list[Recording], list[str]]:
    """Return the recordings of the newest run in a folder, in the order of ranks; and the names of older runs there.

    Raises:
        ConfigurationError: there is none.
    """
    found: dict[str, list[Recording]] = {}
    for path in sorted(directory.glob(PATTERN)):
        if not path.name.endswith(OLDER):
            recording = _recording(path)
            if recording is not None:
                found.setdefault(recording.described["run"], []).append(recording)
    if not found:
        raise ConfigurationError(
            f"{directory}: no timeline is there: expected files {PATTERN}. Run the program with "
            "PUSHSUM_TIMELINE set to this folder on every rank (mpirun -x PUSHSUM_TIMELINE=...)"
        )
    newest, *older = sorted(found, key=lambda run: -max(float(one.described["began"]) for one in found[run]))
    return sorted(found[newest], key=lambda one: one.rank), older


def _recording(path: Path) -> Recording | None:
    """Return what one rank wrote; None where not even its first line was written."""
    before = path.with_suffix(OLDER)
    paths = [one for one in (before, path) if one.exists()]
    recording = None
    for line in _lines(paths):
        if isinstance(line, dict) and line.get("format") == FORMAT:
            recording = recording or Recording(paths, line)
        elif recording is None:
            continue
        elif isinstance(line, dict) and "met" in line:
            if line not in recording.meetings:
                recording.meetings.append(line)
        elif isinstance(line, dict) and "thread" in line:
            recording.threads[line["thread"]] = line["name"]
        elif isinstance(line, list) and len(line) > 2:
            recording.first = recording.first or line[0]
            recording.last = line[0]
        else:
            recording.torn += 1
    if recording is not None and not recording.first and recording.meetings:
        recording.first = recording.last = recording.meetings[-1]["met"][-1][1]
    return recording


def _lines(paths: list[Path]) -> Iterator[Any]:
    """Read lines of JSON; one that is torn is None."""
    for path in paths:
        with path.open("rb") as file:
            yield from map(_parsed, file)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
