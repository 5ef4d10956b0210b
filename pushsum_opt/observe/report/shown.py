"""The pictures of the page: what is drawn of a run, and the sentences that go with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

from .advice import SLOW
from .figures import RankFigures, RunFigures
from .over_time import pooled, rate, series
from .pictures import Bar, Line, Mark, Spread, draw_bars, draw_heat, draw_lines, draw_spreads
from .pictures.axes import time_unit
from .pictures.spreads import PARTS
from .reading import Row, Run, recorded
from .tables import section
from .units import bytes_text, figures_text, percent, seconds_text

__all__ = ["pictures_of_ranks", "pictures_over_time"]

WIDE, HALF, NARROW = 900.0, 440.0, 350.0
"""Each picture is drawn twice, so that its letters have one size on every screen."""
MOST_ROWS = 64
"""Of more ranks, blocks of them are shown."""
MOST_LOGGED = 6

STEP_PARTS = (
    ("work", "the program's own work (data, forward, backward)"),
    ("local", "step of the wrapped optimizer"),
    ("give", "giving and merging"),
    ("wait", "waiting for messages"),
    ("all", "waiting in calls of all ranks"),
)


def _both(draw: Callable[[float], object], wide: float = WIDE) -> str:
    return f'<div class="wide">{draw(wide)}</div>\n<div class="narrow">{draw(NARROW)}</div>'


# ---------------------------------------------------------------------- by rank


def pictures_of_ranks(run: Run, figures: RunFigures) -> Iterator[str]:
    """Draw where a step goes, how step times are spread, and who waits for whom."""
    blocks = _blocks(figures.ranks)
    shown = [max(block, key=lambda one: one.own) for block in blocks]
    each = "" if len(shown) == len(figures.ranks) else f" Of every {len(blocks[0])} ranks the slowest one is shown."
    yield _where_a_step_goes(figures, shown, each)
    if (spread := _step_times(run, figures, shown, each)) is not None:
        yield spread
    if len(figures.ranks) > 1:
        yield _who_waits(figures, blocks)


def _blocks(ranks: Sequence[RankFigures]) -> list[Sequence[RankFigures]]:
    """Divide the ranks into blocks that follow each other, as few ranks in each as there is room for."""
    length = -(-len(ranks) // MOST_ROWS)
    return [ranks[start : start + length] for start in range(0, len(ranks), length)]


def _where_a_step_goes(figures: RunFigures, shown: Sequence[RankFigures], each: str) -> str:
    unit, name = time_unit(max(one.step for one in shown))
    slowest = figures.slowest
    assert slowest is not None
    bars = [
        Bar(str(one.rank), [part / unit for part in _parts(one)], _about(one), one.own > SLOW * figures.own)
        for one in shown
    ]
    kinds = [kind for kind, _ in STEP_PARTS]
    used = [part for index, part in enumerate(STEP_PARTS) if any(bar.parts[index] > 0 for bar in bars)]
    key = "".join(f'<span><i class="{kind}"></i>{escape(said)}</span>' for kind, said in used)
    said = (
        f"Time per step, the mean over the run. Own work takes {seconds_text(figures.own)} on the median rank and "
        f"{seconds_text(slowest.own)} on rank {slowest.rank}; waiting for messages takes "
        f"{percent(figures.wait / figures.step if figures.step else 0.0)} of a step.{each}"
    )
    drawn = _both(
        lambda width: draw_bars(bars, kinds, f"time per step ({name})", "rank", width, "Where a step goes, by rank")
    )
    return section("Where a step goes", said, f'<div class="key">{key}</div>\n{drawn}')


def _parts(one: RankFigures) -> list[float]:
    give = max(0.0, one.in_rounds - one.wait)
    work = max(0.0, one.own - give - one.in_local_steps)
    return [work, one.in_local_steps, give, one.wait, one.wait_all]


def _about(one: RankFigures) -> str:
    return f"rank {one.rank} on {one.host}: step {seconds_text(one.step)}, own {seconds_text(one.own)}, waits " + (
        f"{seconds_text(one.wait)}" + ("" if one.waited_for is None else f", most for rank {one.waited_for}")
    )


def _step_times(run: Run, figures: RunFigures, shown: Sequence[RankFigures], each: str) -> str | None:
    rows_of = {one.rank: run.ranks[one.rank].rows for one in shown}
    spreads = {rank: pooled(rows[1:] or rows, PARTS, run.about["every"]) for rank, rows in rows_of.items()}
    if not all(spreads.values()):
        return None
    unit, name = time_unit(max(values[-1] for values in spreads.values()))
    rows = [
        Spread(
            str(rank),
            [value / unit for value in values],
            f"rank {rank}: median {seconds_text(values[2])}, 99 % below {seconds_text(values[-1])}, longest "
            f"{seconds_text(run.ranks[rank].worst_step)}",
        )
        for rank, values in spreads.items()
    ]
    longest = max(run.ranks.values(), key=lambda log: log.worst_step)
    said = (
        "From the end of one round to that of the next. Line: 1 % to 99 % of all steps; box: the middle half; stroke: "
        f"the median. The longest step of all took {seconds_text(longest.worst_step)}, on rank {longest.rank}.{each}"
    )
    if figures.staleness != "unbounded":
        said += " With a bound on staleness all ranks have the pace of the slowest."
    drawn = _both(lambda width: draw_spreads(rows, f"step time ({name})", "rank", width, "Step times by rank"))
    return section("Step times", said, drawn)


def _who_waits(figures: RunFigures, blocks: Sequence[Sequence[RankFigures]]) -> str:
    block_of = {one.rank: index for index, block in enumerate(blocks) for one in block}
    labels = [str(block[0].rank) if len(block) == 1 else f"{block[0].rank}-{block[-1].rank}" for block in blocks]
    sums: dict[tuple[int, int], float] = {}
    for one in figures.ranks:
        for peer, seconds in one.waits.items():
            if peer in block_of and seconds > 0:
                key = block_of[one.rank], block_of[peer]
                sums[key] = sums.get(key, 0.0) + seconds / len(blocks[key[0]])
    waited = figures.waited_for
    most = max(waited, key=lambda rank: waited[rank], default=None)
    said = (
        "Each row is a rank that waits, each column the rank that it waits for; the stronger the colour, the longer. A "
        "wait for several messages at a time counts for the one that came last."
    )
    if most is not None and waited[most] > 0:
        said += f" {percent(waited[most] / sum(waited.values()))} of all waiting is for rank {most}."
    if len(blocks[0]) > 1:
        said += f" {len(blocks[0])} ranks are put together."
    elif not sums:
        return section("Who waits for whom", "No rank waits for another one.", "")
    unit, name = time_unit(max(sums.values(), default=0.0))
    values = {key: seconds / unit for key, seconds in sums.items()}
    return section(
        "Who waits for whom",
        said,
        _both(
            lambda width: draw_heat(
                values, labels, "rank that waits", "rank waited for", f"{name} per step", min(width, 640.0), "Waits"
            )
        ),
    )


# ---------------------------------------------------------------------- over time


def pictures_over_time(run: Run) -> Iterator[str]:
    """Draw what changes over a run."""
    sent = rate(lambda row: row["sent_bytes_total"] / 1e6, lambda row: row["time"])
    waits = rate(_waited, lambda row: row["time"])
    marks = [Mark(loss["time"] - run.began, f"lost: {loss['ranks']}") for loss in run.losses]

    def step(before: Row, row: Row) -> float | None:
        mean: float | None = row["step_seconds"].get("mean")
        return mean

    def waiting(before: Row, row: Row) -> float | None:
        part = waits(before, row)
        return None if part is None else 100 * part

    band = "Line: the median over ranks; band: from the least to the largest."
    if (line := series(run, step)) is not None:
        unit, name = time_unit(max(line.high))
        scaled = Line(line.x, *([value / unit for value in values] for values in (line.low, line.middle, line.high)))
        yield _over_time("Step time", f"Means of each row. {band}", scaled, f"step time ({name})", marks)
    if (line := series(run, waiting)) is not None:
        yield _over_time("Waiting", f"For messages, of all time. {band}", line, "waiting (% of the time)", marks)
    if (line := series(run, lambda before, row: row["push_weight"])) is not None:
        said = (
            f"Between {figures_text(min(line.low))} and {figures_text(max(line.high))}. 1 on regular graphs in "
            f"synchronous rounds, 2 / (2 + staleness) when overlapped, always above 0. {band}"
        )
        yield _over_time("Push weights", said, line, "push weight", marks)
    if (line := series(run, lambda before, row: recorded(row, "consensus_distance"))) is not None:
        said = (
            "How far the ranks' models are from their mean (root mean square over ranks). It falls with the learning "
            f"rate, and should be small against what training moves. The last value is {figures_text(line.middle[-1])}."
        )
        yield _over_time("Consensus distance", said, line, "consensus distance", marks, from_zero=False)
    if (line := series(run, sent)) is not None:
        total = sum(log.rows[-1]["sent_bytes_total"] for log in run.ranks.values() if log.rows)
        said = f"Bytes of messages that a rank sends; {bytes_text(total)} of all ranks in the whole run. {band}"
        yield _over_time("Traffic", said, line, "sent per rank (MB/s)", marks)
    yield from _logged(run, marks, band)


def _logged(run: Run, marks: Sequence[Mark], band: str) -> Iterator[str]:
    names = sorted({name for log in run.ranks.values() for row in log.rows[-8:] for name in row["logged"]})
    for name in names[:MOST_LOGGED]:
        if name == "consensus_distance":
            continue
        line = series(run, _logged_value(name))
        if line is not None:
            said = f"As the program logs it with metrics.log(). {band}"
            yield _over_time(f"Logged: {name}", said, line, name, marks, from_zero=False)


def _logged_value(name: str) -> Callable[[Row, Row], float | None]:
    def value(before: Row, row: Row) -> float | None:
        found: Any = row["logged"].get(name)
        return float(found) if isinstance(found, int | float) and abs(found) < float("inf") else None

    return value


def _waited(row: Row) -> float:
    return float(sum(seconds for peer, seconds in row["wait_seconds_total"].items() if peer != "all"))


def _over_time(title: str, said: str, line: Line, values: str, marks: Sequence[Mark], *, from_zero: bool = True) -> str:
    unit, name = time_unit(line.x[-1])
    scaled = Line([x / unit for x in line.x], line.low, line.middle, line.high)
    there = [Mark(mark.x / unit, mark.about) for mark in marks]
    drawn = _both(
        lambda width: draw_lines(
            scaled, f"time since the start ({name})", values, width, title, marks=there, from_zero=from_zero
        ),
        HALF,
    )
    return section(title, said, drawn)
