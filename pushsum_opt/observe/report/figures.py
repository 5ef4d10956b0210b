"""What rows of metrics say of a rank, per step; and of all ranks together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .reading import RankLog, Run, recorded

__all__ = ["EVERYBODY", "RankFigures", "RunFigures", "figures_of_rank", "figures_of_run"]

EVERYBODY = "all"
"""The name in ``wait_seconds_total`` of waits in collective calls."""


ROWS_BACK = 64
"""In so many of the last rows is looked for what is not in every row."""


@dataclass
class RankFigures:
    """What one rank did in an interval. Times are seconds per step, where a step ends with a round."""

    rank: int
    host: str
    round: int
    steps: int
    """Steps in the interval."""
    step: float
    """From one step to the next, the mean."""
    waits: dict[int, float]
    """Waited in rounds, by the rank waited for."""
    wait_all: float
    """Waited in collective calls."""
    usual_wait: float
    """Waited in half of the rounds at most: a step that is slow now and then does not count."""
    in_rounds: float
    """Inside rounds, waits included."""
    in_local_steps: float
    spans: dict[str, float]
    """Inside each span of the program."""
    bytes_per_second: float
    bytes_per_step: float
    age: float | None
    """The mean age of merged messages, in rounds; None: none was merged."""
    push_weight: float
    skipped: int
    """Chunks of messages that were not merged, from the beginning."""
    missed: int
    """Blocks of messages in eight bits that were not merged, from the beginning."""
    consensus: float | None
    """The consensus distance as this rank knows it; None: not known."""
    seen: float
    """When it last wrote, in s since 1970."""
    ended: bool
    more: dict[str, Any] = field(default_factory=dict)
    """The last row, as it was written."""

    @property
    def wait(self) -> float:
        """Waited in rounds."""
        return sum(self.waits.values())

    @property
    def own(self) -> float:
        """What is not waited, in rounds or in collective calls: this rank's own work."""
        return max(0.0, self.step - self.wait - self.wait_all)

    @property
    def waited_for(self) -> int | None:
        """The rank that it waited for most."""
        return max(self.waits, key=lambda peer: self.waits[peer]) if self.wait > 0 else None


@dataclass
class RunFigures:
    """What all ranks did in an interval."""

    about: dict[str, Any]
    ranks: list[RankFigures]
    """In the order of ranks; those that wrote a row."""

    def __post_init__(self) -> None:
        self.step = _median([one.step for one in self.ranks])
        """The median over ranks of the mean step time, in s."""
        self.own = statistics.median_low([one.own for one in self.ranks]) if self.ranks else 0.0
        """The median over ranks of the time of a step that is not waited, in s; of two ranks, that of the quicker."""
        self.wait = _mean([one.wait for one in self.ranks])
        """Waited in rounds, the mean over ranks, in s per step."""
        self.wait_all = _mean([one.wait_all for one in self.ranks])
        """Waited in collective calls, the mean over ranks, in s per step."""
        self.message = min((one.usual_wait for one in self.ranks), default=0.0)
        """What the rank that waits least waits in its median round, in s: no other is late for it, so it waits for
        the messages themselves."""

    @property
    def staleness(self) -> int | str:
        """0: synchronous; 1, 2, ...: overlapped; "unbounded"."""
        staleness: int | str = self.about["staleness"]
        return staleness

    @property
    def waited_for(self) -> dict[int, float]:
        """How long all ranks waited for a rank, in s per step, by that rank."""
        found: dict[int, float] = {}
        for one in self.ranks:
            for peer, seconds in one.waits.items():
                found[peer] = found.get(peer, 0.0) + seconds
        return found

    @property
    def slowest(self) -> RankFigures | None:
        """The rank whose own work takes longest."""
        return max(self.ranks, key=lambda one: one.own, default=None)

    def rank(self, rank: int) -> RankFigures | None:
        """Return the figures of a rank; None where it wrote nothing."""
        return next((one for one in self.ranks if one.rank == rank), None)


def figures_of_run(run: Run, rows: int | None = None) -> RunFigures:
    """Return the figures of all ranks that wrote a row.

    Args:
        rows: how many of the last rows; None: all but the first, in which memory is allocated.
    """
    found = [figures_of_rank(log, rows) for log in run.ranks.values() if log.rows]
    return RunFigures(run.about, found)


def figures_of_rank(log: RankLog, rows: int | None = None) -> RankFigures:
    """Return the figures of a rank that wrote at least one row."""
    last = log.rows[-1]
    stepped = [row for index, row in enumerate(log.rows) if index == 0 or row["steps_total"] > _before(log, index)]
    end = stepped[-1]
    if rows is not None and len(stepped) > rows:
        begin = stepped[-1 - rows]
    else:
        begin = stepped[0] if len(stepped) > 1 else _start(log)
    steps: int = max(1, end["steps_total"] - begin["steps_total"])
    seconds: float = max(1e-9, end["time"] - begin["time"])

    def per_step(name: str) -> float:
        return max(0.0, float(end.get(name, 0.0) - begin.get(name, 0.0))) / steps

    waits = _differences(begin["wait_seconds_total"], end["wait_seconds_total"], steps)
    sent = end["sent_bytes_total"] - begin["sent_bytes_total"]
    recent = stepped[-(rows or len(stepped)) :]
    ages = [row["message_age"]["mean"] for row in recent if row["message_age"]]
    return RankFigures(
        rank=log.rank,
        host=log.about["host"],
        round=last["round"],
        steps=steps,
        step=seconds / steps,
        wait_all=waits.pop(EVERYBODY, 0.0),
        waits={int(peer): value for peer, value in waits.items()},
        usual_wait=_median([row["round_wait_seconds"]["p50"] for row in recent if row["round_wait_seconds"]]),
        in_rounds=per_step("round_seconds_total"),
        in_local_steps=per_step("local_step_seconds_total"),
        spans=_differences(begin["span_seconds_total"], end["span_seconds_total"], steps),
        bytes_per_second=sent / seconds,
        bytes_per_step=sent / steps,
        age=_mean(ages) if ages else None,
        push_weight=last["push_weight"],
        skipped=last["chunks_skipped_total"],
        missed=last["blocks_missed_total"],
        consensus=_last(log, "consensus_distance"),
        seen=log.seen,
        ended=log.ended is not None,
        more=last,
    )


def _before(log: RankLog, index: int) -> int:
    steps: int = log.rows[index - 1]["steps_total"]
    return steps


def _start(log: RankLog) -> dict[str, Any]:
    """Return a row as it would have been when the run began."""
    return {
        "time": log.about["began"],
        "steps_total": 0,
        "sent_bytes_total": 0,
        "wait_seconds_total": {},
        "span_seconds_total": {},
    }


def _differences(begin: dict[str, float], end: dict[str, float], steps: int) -> dict[str, float]:
    return {name: max(0.0, total - begin.get(name, 0.0)) / steps for name, total in end.items()}


def _last(log: RankLog, name: str) -> float | None:
    """Return a number from the last rows, whichever has it last: what a program logs need not be in every row."""
    found = (recorded(row, name) for row in reversed(log.rows[-ROWS_BACK:]))
    return next((value for value in found if value is not None), None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0
