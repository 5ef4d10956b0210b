"""The page of a run: one file of HTML, which needs nothing else and no network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from .advice import Advice, Evidence, advise
from .figures import RunFigures
from .reading import Run
from .shown import pictures_of_ranks, pictures_over_time
from .style import STYLE
from .tables import losses, mode_of, ranks_table, section, spans_table, what_ran
from .units import bytes_text, percent, ranks_text, seconds_text

__all__ = ["page"]


def page(run: Run) -> str:
    """Return the page of a run of which at least one rank wrote a row."""
    figures = Evidence(run).figures
    parts = [
        _head(run),
        _tiles(run, figures),
        _advice(advise(run)),
        *pictures_of_ranks(run, figures),
        '<div class="halves">',
        *pictures_over_time(run),
        "</div>",
        losses(run),
        spans_table(figures),
        ranks_table(run, figures),
        what_ran(run),
    ]
    title = f"{run.about['program'] or 'run'}: {run.size} ranks"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(filter(None, parts)) + "\n</main>\n</body>\n"
        "</html>\n"
    )


def _head(run: Run) -> str:
    about = run.about
    hosts = len({log.about["host"] for log in run.ranks.values()})
    began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.began))
    return (
        f"<header>\n<h1>{escape(about['program'] or 'A run')} on {run.size} rank{'s' * (run.size > 1)}</h1>\n"
        f'<p class="faint">{hosts} host{"s" * (hosts > 1)}, {escape(about["graph"])}, {escape(mode_of(about))}. Began '
        f"{began}, {_end(run)}.</p>\n</header>"
    )


def _end(run: Run) -> str:
    if run.ended():
        return "ended" + (f" without {ranks_text(run.lost)}" if run.lost else "")
    going = [log.rank for log in run.ranks.values() if log.ended is None and log.rank not in run.lost]
    return f"not ended: {ranks_text(going)} went on when this page was made, or were killed"


def _tiles(run: Run, figures: RunFigures) -> str:
    slowest = figures.slowest
    assert slowest is not None
    rounds = [one.round + 1 for one in figures.ranks if one.rank not in run.lost] or [0]
    step = figures.step or 1.0
    said = [
        (seconds_text(figures.step), "a step (median rank)"),
        (percent(figures.wait / step), "of it waiting for messages"),
        (seconds_text(figures.own), f"own work (median); {seconds_text(slowest.own)} on rank {slowest.rank}"),
        (
            f"{bytes_text(sum(one.bytes_per_second for one in figures.ranks) / len(figures.ranks))}/s",
            "sent by each rank",
        ),
        (str(max(rounds)), "rounds" if min(rounds) == max(rounds) else f"rounds; the last rank made {min(rounds)}"),
        (seconds_text(run.seen - run.began), "from the first rank's start to the last row"),
    ]
    tiles = "\n".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in said)
    return f'<div class="tiles">\n{tiles}\n</div>'


def _advice(found: Sequence[Advice]) -> str:
    if not found:
        fine = "None of the rules found anything: no rank is slow, late, silent or lost, and rounds cost little."
        return section("What to change", "", f'<ol class="advice"><li class="fine">{fine}</li></ol>')
    items = []
    for one in found:
        gain = f"<small>may save up to {percent(one.saves)} of a step</small>" if one.saves >= 0.01 else ""
        items.append(f"<li{' class=fault' if one.fault else ''}>{escape(one.text)}{gain}</li>")
    inside = '<ol class="advice">\n' + "\n".join(items) + "\n</ol>"
    return section("What to change", "Faults first, then what costs most. Each sentence has its figure.", inside)
