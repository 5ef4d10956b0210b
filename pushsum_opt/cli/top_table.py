"""The table of ``pushsum top``: a row for each rank; of many ranks, groups and the worst."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..observe.report.advice import SLOW, advise
from ..observe.report.figures import RankFigures, RunFigures, figures_of_run
from ..observe.report.reading import Run
from ..observe.report.units import bytes_text, figures_text, percent, ranks_text, seconds_text, since_text

__all__ = ["table"]

RECENT_ROWS = 5
"""The figures are those of the last rows of each rank, so many."""
MOST_RANKS = 256
"""Of more ranks, groups are shown and the worst."""
WORST = 10
MOST_GROUPS = 32
LATE_S = 30.0
"""A rank that wrote nothing for so long, and for three times the usual, is marked."""
ADVICE_LINES = 2


@dataclass
class Column:
    title: str
    cell: Callable[[RankFigures], str]
    priority: int
    """Where the terminal is narrow, columns with the highest number go first."""
    needed: Callable[[RankFigures], bool] = lambda one: True
    """The column is shown where this holds for any rank."""


def table(run: Run, now: float, width: int, height: int | None = None) -> Any:
    """Return what rich prints.

    Args:
        now: the time, in s since 1970.
        width, height: of the terminal, in characters; height None: as long as it comes.
    """
    figures = figures_of_run(run, RECENT_ROWS)
    group = import_module("rich.console").Group
    if not figures.ranks:
        return f"{_title(run)}\nno rank has written a row yet: the first one comes after {run.about['every']} rounds"
    notes = _notes(run, figures, now)
    crowd = len(figures.ranks) > (MOST_RANKS if height is None else max(WORST, min(MOST_RANKS, height - 8)))
    parts = [_summary(run, figures)]
    if crowd:
        parts.append(_groups(figures, notes))
        parts.append(_ranks(_worst(figures, notes), notes, now, width, f"the {WORST} worst of {len(figures.ranks)}"))
    else:
        parts.append(_ranks(figures.ranks, notes, now, width, None))
    parts += [_escaped(f"- {one.text}") for one in advise(run)[:ADVICE_LINES]]
    return group(*parts)


# ---------------------------------------------------------------------- words


def _title(run: Run) -> str:
    about = run.about
    mode = {0: "synchronous", "unbounded": "asynchronous"}.get(about["staleness"], f"staleness={about['staleness']}")
    return f"{about['program'] or 'run'} ({run.name}): {run.size} ranks, {about['graph']}, {mode}"


def _summary(run: Run, figures: RunFigures) -> Any:
    seconds = figures.step
    waiting = figures.wait / seconds if seconds else 0.0
    rounds = [one.round for one in figures.ranks]
    reached = f"round {min(rounds)}" if min(rounds) == max(rounds) else f"rounds {min(rounds)} to {max(rounds)}"
    return _escaped(
        f"{_title(run)}\n{reached}; a step takes {seconds_text(seconds)} (median), {percent(waiting)} of it waiting; "
        f"{bytes_text(sum(one.bytes_per_second for one in figures.ranks))}/s sent in all"
    )


def _escaped(text: str) -> Any:
    return import_module("rich.text").Text(text)


def _notes(run: Run, figures: RunFigures, now: float) -> dict[int, str]:
    """Say what is remarkable about ranks, by rank."""
    notes: dict[int, list[str]] = {one.rank: [] for one in figures.ranks}
    slowest = figures.slowest
    if slowest is not None and len(figures.ranks) > 1 and slowest.own > SLOW * figures.own > 0:
        notes[slowest.rank].append("slowest")
    waited = {rank: seconds for rank, seconds in figures.waited_for.items() if rank in notes}
    most = max(waited, key=lambda rank: waited[rank], default=None)
    if most is not None and waited[most] > SLOW * sum(waited.values()) / len(figures.ranks):
        notes[most].append("waited for most")
    usual = statistics.median(one.step for one in figures.ranks) * run.about["every"]
    for one in figures.ranks:
        if one.rank in run.lost:
            notes[one.rank].append("lost")
        elif one.ended:
            notes[one.rank].append("ended")
        elif now - one.seen > max(LATE_S, 3 * usual):
            notes[one.rank].append("silent")
    return {rank: ", ".join(said) for rank, said in notes.items()}


# ---------------------------------------------------------------------- ranks


def _columns(notes: dict[int, str], now: float) -> list[Column]:
    return [
        Column("rank", lambda one: str(one.rank), 0),
        Column("host", lambda one: one.host, 9),
        Column("round", lambda one: str(one.round), 5),
        Column("step", lambda one: seconds_text(one.step), 1),
        Column("own", lambda one: seconds_text(one.own), 2),
        Column("waiting", lambda one: percent(one.wait / one.step), 1),
        Column("waits most for", _waits_for, 1),
        Column("age", lambda one: "-" if one.age is None else f"{one.age:.1f}", 6),
        Column("push weight", lambda one: figures_text(one.push_weight), 4),
        Column("sent", lambda one: f"{bytes_text(one.bytes_per_second)}/s", 7),
        Column(
            "consensus", lambda one: figures_text(one.consensus or 0.0), 3, needed=lambda one: one.consensus is not None
        ),
        Column("skipped", lambda one: str(one.skipped), 3, needed=lambda one: one.skipped > 0),
        Column("missed", lambda one: str(one.missed), 8, needed=lambda one: one.missed > 0),
        Column("seen", lambda one: since_text(now - one.seen), 5),
        Column("", lambda one: notes[one.rank], 0, needed=lambda one: bool(notes[one.rank])),
    ]


def _waits_for(one: RankFigures) -> str:
    peer = one.waited_for
    return "-" if peer is None else f"{peer} ({percent(one.waits[peer] / one.wait)})"


def _ranks(ranks: Sequence[RankFigures], notes: dict[int, str], now: float, width: int, title: str | None) -> Any:
    columns = [column for column in _columns(notes, now) if any(map(column.needed, ranks))]
    while len(columns) > 3 and _width(columns, ranks) > width:
        columns.remove(max(columns, key=lambda column: column.priority))
    made = _table(title, [column.title for column in columns])
    for one in ranks:
        made.add_row(*(column.cell(one) for column in columns), style=_style(notes[one.rank]))
    return made


def _width(columns: Sequence[Column], ranks: Sequence[RankFigures]) -> int:
    widest = [max([len(column.title), *(len(column.cell(one)) for one in ranks)]) for column in columns]
    return sum(widest) + 2 * len(widest)


def _style(note: str) -> str | None:
    if "slowest" in note or "waited for" in note:
        return "bold yellow"
    return "red" if "silent" in note or "lost" in note else None


def _table(title: str | None, columns: Sequence[str]) -> Any:
    made = import_module("rich.table").Table(
        title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0)
    )
    for name in columns:
        made.add_column(name, justify="left" if name in ("", "host", "ranks") else "right", no_wrap=True)
    return made


def _worst(figures: RunFigures, notes: dict[int, str]) -> list[RankFigures]:
    """Return the ranks that one wants to see: those with a note, those waited for, those that are slow."""
    waited = figures.waited_for

    def badness(one: RankFigures) -> tuple[bool, float]:
        alarming = any(word in notes[one.rank] for word in ("silent", "lost", "slowest", "waited"))
        return alarming, max(one.own - figures.own, 0.0) + waited.get(one.rank, 0.0)

    return sorted(figures.ranks, key=badness, reverse=True)[:WORST]


# ---------------------------------------------------------------------- groups


def _groups(figures: RunFigures, notes: dict[int, str]) -> Any:
    """Return a table of hosts; where there are too many, or one alone, of ranks that follow each other."""
    groups: dict[str, list[RankFigures]] = {}
    for one in figures.ranks:
        groups.setdefault(one.host, []).append(one)
    if not 1 < len(groups) <= MOST_GROUPS:
        length = -(-(figures.ranks[-1].rank + 1) // MOST_GROUPS)
        groups = {}
        for one in figures.ranks:
            groups.setdefault(str(one.rank // length), []).append(one)
    waited = figures.waited_for
    made = _table("groups", ["ranks", "host", "step", "own", "own, slowest", "waiting", "waited for", "sent", "noted"])
    for ranks in groups.values():
        hosts = {one.host for one in ranks}
        slowest = max(ranks, key=lambda one: one.own)
        asked = sum(waited.get(one.rank, 0.0) for one in ranks)
        made.add_row(
            ranks_text([one.rank for one in ranks], 2).split(" ", 1)[1],
            hosts.pop() if len(hosts) == 1 else f"{len(hosts)} hosts",
            seconds_text(statistics.median(one.step for one in ranks)),
            seconds_text(statistics.median(one.own for one in ranks)),
            f"{seconds_text(slowest.own)} ({slowest.rank})",
            percent(statistics.fmean(one.wait / one.step for one in ranks)),
            percent(asked / sum(waited.values()) if waited else 0.0),
            f"{bytes_text(sum(one.bytes_per_second for one in ranks))}/s",
            str(sum(bool(notes[one.rank]) and notes[one.rank] != "ended" for one in ranks)),
            style="bold yellow" if slowest is figures.slowest and notes[slowest.rank] else None,
        )
    return made
