"""Makes one trace of all ranks' recordings, in the Chrome trace-event format: each rank is a process there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .clocks import ClockLine, compare_clocks
from .reading import Recording
from .tracks import Messages, Tracks

__all__ = ["write_trace"]


def write_trace(recordings: list[Recording], output: Path) -> dict[str, Any]:
    """Write the trace of a run, and return what it says of itself.

    The events of one rank after the other are written as they are read, so memory holds the messages alone.
    """
    lines = compare_clocks(recordings)
    began = min(lines[one.rank].corrected(one.first) for one in recordings)
    said = _summary(recordings, lines)
    messages = Messages()
    with output.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        first = True
        for recording in recordings:
            line = lines[recording.rank]
            first = _write(file, _rank_events(recording, line, said, _microseconds(line, began), messages), first)
        _write(file, messages.arrows(), first)
        said["arrows"] = messages.matched
        said["backwards_us"] = messages.backwards
        file.write(f'\n],"otherData":{json.dumps(said)}}}\n')
    return said


def _microseconds(line: ClockLine, began: float) -> Callable[[int], float]:
    return lambda time: round((line.corrected(time) - began) / 1e3, 3)


def _write(file: IO[str], events: Iterator[dict[str, Any]], first: bool) -> bool:
    for event in events:
        file.write(("" if first else ",\n") + json.dumps(event, separators=(",", ":")))
        first = False
    return first


def _summary(recordings: list[Recording], lines: dict[int, ClockLine]) -> dict[str, Any]:
    """Return what the trace says of itself; times in microseconds."""
    errors = {one.rank: _error(one, lines[one.rank]) for one in recordings}
    worst = sorted(errors.values())[-2:]
    described = recordings[0].described
    return {
        "run": described["run"],
        "ranks": described["size"],
        "ranks_without_a_file": sorted(set(range(described["size"])) - errors.keys()),
        "lines_that_were_torn": sum(one.torn for one in recordings),
        "clock_error_us": round(sum(worst), 3),
        "clock_error_us_by_rank": {str(rank): round(error, 3) for rank, error in errors.items()},
        "clock_offset_us_by_rank": {str(rank): round(line.offset / 1e3, 3) for rank, line in lines.items()},
        "clock_drift_ppm_by_rank": {str(rank): round(line.drift * 1e6, 3) for rank, line in lines.items()},
    }


def _error(recording: Recording, line: ClockLine) -> float:
    return max(line.error_at(recording.first), line.error_at(recording.last)) / 1e3


def _rank_events(
    recording: Recording, line: ClockLine, said: dict[str, Any], time: Callable[[int], float], messages: Messages
) -> Iterator[dict[str, Any]]:
    rank, described = recording.rank, recording.described
    name = f"rank {rank} on {described['host']}, process {described['pid']}"
    error = said["clock_error_us_by_rank"][str(rank)]
    for kind, value in (
        ("process_name", {"name": name}),
        ("process_sort_index", {"sort_index": rank}),
        ("process_labels", {"labels": f"clock +- {error} us"}),
    ):
        yield {"ph": "M", "pid": rank, "name": kind, "args": value}
    for thread, named in recording.threads.items():
        yield {"ph": "M", "pid": rank, "tid": thread, "name": "thread_name", "args": {"name": named}}
    yield from Tracks(rank, time, messages).events(recording)
