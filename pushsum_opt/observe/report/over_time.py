"""What rows of all ranks say over time: of each moment the least, the median and the largest over ranks."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from ..metrics.collected import QUANTILES
from .pictures import Line
from .reading import RankLog, Row, Run

__all__ = ["pooled", "rate", "series"]

MOMENTS = 160
"""So many moments are shown at most."""
SLACK = 1e-4
"""Of the whole time: rows that were written at one moment may be so far apart."""
SAMPLES = 20
"""Of the steps of each row."""


def rate(total: Callable[[Row], float], per: Callable[[Row], float]) -> Callable[[Row, Row], float | None]:
    """Return a function of two rows: by how much one total grew between them for each of another."""

    def between(before: Row, row: Row) -> float | None:
        if row["steps_total"] == before["steps_total"]:  # closing has written it
            return None
        grown = per(row) - per(before)
        return (total(row) - total(before)) / grown if grown > 0 else None

    return between


def series(run: Run, value: Callable[[Row, Row], float | None]) -> Line | None:
    """Return a value of all ranks over time, in s since the run began; None where no row has it.

    Args:
        value: of a row, given the row before it and the row itself; None: it has none.
    """
    points = [
        (log, found) for log in run.ranks.values() if (found := list(_points(log, value, run.began)))
    ]  # of each rank: (s, value)
    if not points:
        return None
    begin = min(found[0][0] for _, found in points)
    end = max(found[-1][0] for _, found in points)
    count = min(MOMENTS, max(len(found) for _, found in points))
    x, low, middle, high = [], [], [], []
    for k in range(count):
        moment = begin + (end - begin) * k / max(1, count - 1)
        late = moment + SLACK * (end - begin)
        here = [one for log, found in points if (one := _at(found, late, run.lost, log)) is not None]
        if here:
            x.append(moment)
            low.append(min(here))
            middle.append(statistics.median(here))
            high.append(max(here))
    return Line(x, low, middle, high) if x else None


def _points(log: RankLog, value: Callable[[Row, Row], float | None], began: float) -> Iterator[tuple[float, float]]:
    for before, row in pairwise(log.rows[:1] + log.rows):
        found = value(before, row)
        if found is not None:
            yield row["time"] - began, found


def _at(points: list[tuple[float, float]], moment: float, lost: set[int], log: RankLog) -> float | None:
    """Return the last value before a moment, or the first one; None after the last row of a rank."""
    index = bisect_right(points, (moment, float("inf")))
    if index == len(points) and moment > points[-1][0] and (log.rank in lost or log.ended is not None):
        distance = moment - points[-1][0]
        if len(points) == 1 or distance > points[-1][0] - points[-2][0]:
            return None
    return points[max(0, index - 1)][1]


def pooled(rows: Sequence[Row], parts: Sequence[float], steps: int) -> list[float]:
    """Return the step times, in s, below which these parts of all steps of the rows lie.

    Each row has a minimum, quantiles and a maximum, which are times of single steps. Between them its steps are taken
    to lie evenly.

    Args:
        steps: so many belong to a row.
    """
    places = {"min": 0, **{name: min(steps - 1, int(part * steps)) for name, part in QUANTILES.items()}}
    at = [(place + 0.5) / steps for place in (*places.values(), steps - 1)]
    values: list[float] = []
    for row in rows:
        spread = row["step_seconds"]
        if spread:
            known = [spread[name] for name in (*places, "max")]
            values += [_between(at, known, (k + 0.5) / SAMPLES) for k in range(SAMPLES)]
    values.sort()
    return [values[min(len(values) - 1, int(part * len(values)))] for part in parts] if values else []


def _between(at: Sequence[float], known: Sequence[float], part: float) -> float:
    after = bisect_right(at, part)
    if after in (0, len(at)):
        return known[min(after, len(at) - 1)]
    low, high = at[after - 1], at[after]
    return known[after - 1] + (known[after] - known[after - 1]) * (part - low) / (high - low)
