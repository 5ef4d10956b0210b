"""Tables of the page: what ran, losses, spans, and every rank's figures."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from .advice import SLOW
from .figures import RunFigures
from .reading import Run
from .units import bytes_text, figures_text, percent, ranks_text, seconds_text

__all__ = ["losses", "mode_of", "ranks_table", "section", "spans_table", "what_ran"]

MOST_ROWS = 512
"""Of more ranks, the table holds those with the longest own work."""


def section(title: str, said: str, inside: str) -> str:
    """Return a part of the page: its title, a sentence on how to read it, and what it shows."""
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="faint">{escape(said)}</p>\n{inside}\n</section>'


def mode_of(about: dict[str, Any]) -> str:
    """Return the mode of a run in words."""
    staleness = about["staleness"]
    words = {0: "synchronous", "unbounded": "asynchronous"}.get(staleness, "overlapped")
    return f"{words} (staleness={staleness!r})"


def what_ran(run: Run) -> str:
    """Return versions, hosts, graph, mode and options."""
    about = run.about
    hosts = Counter(log.about["host"] for log in run.ranks.values())
    shown = ", ".join(f"{host} ({count})" for host, count in list(hosts.items())[:16])
    options = {
        name: about[name]
        for name, usual in (
            ("gossip_every", 1),
            ("within_host", None),
            ("wire_dtype", None),
            ("nonfinite", "raise"),
            ("rate_correction", False),
            ("on_loss", "stop"),
            ("algorithm", "Gossip"),
        )
        if about[name] not in (usual, None)
    }
    facts = [
        ("program", about["program"]),
        ("run", run.name),
        ("began", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(run.began))),
        ("ranks", f"{run.size} on {len(hosts)} host{'s' * (len(hosts) > 1)}: {shown}" + ", ..." * (len(hosts) > 16)),
        ("graph", about["graph"]),
        ("mode", mode_of(about)),
        ("optimizer", about["optimizer"] or "none: PushSum itself"),
        ("other options", ", ".join(f"{name}={value!r}" for name, value in options.items()) or "as by default"),
        ("sent per rank and round", bytes_text(about["bytes_per_round"])),
        ("memory and transport", f"{about['memory']} over {about['transport']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
        ("system", about["system"] + (f", OMP_NUM_THREADS={about['threads']}" if about["threads"] else "")),
    ]
    rows = "\n".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in facts)
    return section("What ran", "As the lowest rank wrote it down.", f'<table class="facts">\n{rows}\n</table>')


def losses(run: Run) -> str:
    """Return the losses of ranks; nothing where there were none."""
    if not run.losses:
        return ""
    rows = [
        (
            f"{seconds_text(loss['time'] - run.began)}",
            str(loss["round"]),
            ranks_text(loss["ranks"]),
            figures_text(loss["mass"]),
            f"{loss['taken_back']} ({figures_text(loss['mass_taken_back'])})",
            seconds_text(loss["seconds"]),
            ranks_text(loss["replaced"]) if loss["replaced"] else "-",
        )
        for loss in run.losses
    ]
    head = ("after", "round", "lost", "mass lost", "messages taken back (mass)", "recovery", "replaced by spares")
    return section(
        "Losses and recoveries",
        f"Mass counts in ranks: {run.about['participants']} at the start. Dashed lines mark these moments above.",
        _table(head, rows),
    )


def spans_table(figures: RunFigures) -> str:
    """Return how long the spans of the program take; nothing where it has none."""
    names = sorted({name for one in figures.ranks for name in one.spans})
    if not names:
        return ""
    rows = []
    for name in names:
        of_ranks = {one.rank: one.spans.get(name, 0.0) for one in figures.ranks}
        longest = max(of_ranks, key=lambda rank: of_ranks[rank])
        middle = statistics.median(of_ranks.values())
        rows.append(
            (
                name,
                seconds_text(middle),
                percent(middle / figures.step if figures.step else 0.0),
                f"{seconds_text(of_ranks[longest])} (rank {longest})",
            )
        )
    return section(
        "Spans of the program",
        "Time inside each ps.observe.span(name), per step. Spans may lie inside each other.",
        _table(("span", "median rank", "of a step", "longest"), rows),
    )


def ranks_table(run: Run, figures: RunFigures) -> str:
    """Return the figures of every rank, folded up."""
    shown = sorted(figures.ranks, key=lambda one: -one.own)[:MOST_ROWS]
    marked = {one.rank for one in shown if one.own > SLOW * figures.own}
    rows = [
        (
            str(one.rank),
            one.host,
            str(one.round),
            seconds_text(one.step),
            seconds_text(one.own),
            percent(one.wait / one.step if one.step else 0.0),
            "-" if one.waited_for is None else str(one.waited_for),
            seconds_text(run.ranks[one.rank].worst_step),
            "-" if one.age is None else f"{one.age:.1f}",
            figures_text(one.push_weight),
            f"{bytes_text(one.bytes_per_second)}/s",
            str(one.skipped),
            str(one.missed),
            "lost" if one.rank in run.lost else "ended" if one.ended else "open",
        )
        for one in sorted(shown, key=lambda one: one.rank)
    ]
    head = (
        *("rank", "host", "round", "step", "own", "waiting", "waits most for", "longest step", "age", "push weight"),
        *("sent", "skipped", "missed", "end"),
    )
    table = _table(head, rows, {index for index, row in enumerate(rows) if int(row[0]) in marked})
    which = "every rank" if len(shown) == len(figures.ranks) else f"the {len(shown)} ranks with the longest own work"
    inside = f"<details>\n<summary>Figures of {which}</summary>\n{table}\n</details>"
    said = "Means over the run, without the first row of each rank. Slow ranks are marked."
    return section("All ranks", said, inside)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: set[int] | None = None) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join(
        f"<tr{' class=marked' if index in (marked or ()) else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(rows)
    )
    return f'<div class="scroll"><table class="numbers">\n<tr>{top}</tr>\n{body}\n</table></div>'
