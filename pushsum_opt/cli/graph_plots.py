"""Pictures of graphs: mixing curves, and who sends to whom in each round. Needs matplotlib."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from ..graphs import Graph
from ..installed import install_command
from ..mixing import Mixing, mixing_matrix

__all__ = ["draw"]

WIDTH = 10.0  # inches
FLOOR = 1e-4  # the smallest error on the axis; what is exact falls through it
MOST_ROUNDS = 60
MOST_RANKS = 256  # more would not be told apart in a panel
PANELS = (4, 8)  # the fewest and the most places for rounds in a row
STYLES = ("-", "--", ":", "-.")


def draw(path: Path, found: Sequence[tuple[Graph, Mixing]], with_rounds: bool) -> None:
    """Draw the mixing curves of all graphs and, where asked for, below them a row with the rounds of each.

    Rounds are drawn up to 256 ranks.

    Raises:
        ConfigurationError: matplotlib is missing, or it cannot write this kind of file there.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ConfigurationError(f"--plot needs matplotlib: {install_command('plot')}") from None
    with_rounds &= found[0][1].size <= MOST_RANKS
    rows = [_columns(graph, mixing.size) for graph, mixing in found] if with_rounds else []
    heights = [4.6, *(WIDTH / columns + 0.7 for columns in rows)]
    figure = figures.Figure(figsize=(WIDTH, sum(heights)), dpi=110, layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_curves(parts[0].subplots(), [mixing for _, mixing in found])
    for part, columns, (graph, mixing) in zip(parts[1:], rows, found, strict=False):
        _draw_rounds(part, columns, graph, mixing.size)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--plot {path}: {error}") from None


# ---------------------------------------------------------------------- mixing curves


def _draw_curves(axes: Any, found: Sequence[Mixing]) -> None:
    colours = importlib.import_module("matplotlib").colormaps["tab10"]
    ticker = importlib.import_module("matplotlib.ticker")
    needed = [mixing.rounds_to(FLOOR) or MOST_ROUNDS for mixing in found]
    last = max((rounds for rounds in needed if rounds < MOST_ROUNDS), default=MOST_ROUNDS) + 1
    for index, same in enumerate(_alike(found, last)):
        rounds, errors = _points(same[0], last)
        axes.plot(
            rounds,
            errors,
            color=colours(index % 10),
            linestyle=STYLES[index // 10],
            marker="o" if last <= 40 else None,
            markersize=3.5,
            linewidth=1.6 if index else 3.0,  # the first may have others over it
            label="\n".join(f"{mixing.messages:.3g}: {mixing.graph}" for mixing in same),
        )
    axes.set_yscale("log")
    axes.set_ylim(FLOOR, 2.0)
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("gossip rounds (a line that drops to the axis: exact from there on)")
    axes.set_ylabel("worst-case consensus error\n(distance from the mean; start = 1)")
    axes.set_title(f"How fast {found[0].size} ranks come together")
    axes.grid(visible=True, which="major", alpha=0.3)
    title = "messages per rank and round"
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5, title_fontsize=9, title=title)


def _points(mixing: Mixing, last: int) -> tuple[list[int], list[float]]:
    rounds: list[int] = []
    errors: list[float] = []
    for k, error in zip(mixing.rounds, mixing.errors, strict=True):
        if k > last:
            break
        if k == mixing.rounds_to_exact and rounds:  # a vertical line, not a slanted one from the round before
            rounds.append(k)
            errors.append(errors[-1])
        rounds.append(k)
        errors.append(max(error, FLOOR / 100))
    return rounds, errors


def _alike(found: Sequence[Mixing], last: int) -> list[list[Mixing]]:
    """Group graphs whose errors are the same: their curves would hide each other."""
    groups: list[list[Mixing]] = []
    for mixing in found:
        rounds, errors = _points(mixing, last)
        for group in groups:
            others = _points(group[0], last)
            if rounds == others[0] and np.allclose(errors, others[1], rtol=0.01):
                group.append(mixing)
                break
        else:
            groups.append([mixing])
    return groups


# ---------------------------------------------------------------------- who sends to whom


def _columns(graph: Graph, size: int) -> int:
    fewest, most = PANELS
    return min(most, max(fewest, graph.window(size)))


def _draw_rounds(part: Any, columns: int, graph: Graph, size: int) -> None:
    total = graph.window(size)
    shown = min(total, columns)
    panels = part.subplots(1, columns, squeeze=False)[0]
    for panel in panels[shown:]:
        panel.set_visible(False)
    image = None
    for round, panel in enumerate(panels[:shown]):
        matrix = mixing_matrix(graph, size, round)
        image = panel.imshow(np.where(matrix > 0, matrix, np.nan), vmin=0.0, vmax=1.0, cmap="viridis_r")
        panel.set_title(f"round {round}", fontsize=9)
        ticks = range(0, size, max(1, -(-size // 6)))
        panel.set_xticks(ticks)
        panel.set_yticks(ticks if round == 0 else [])
        panel.tick_params(labelsize=8)
        panel.set_xlabel("from rank", fontsize=8)
    panels[0].set_ylabel("to rank", fontsize=8)
    bar = part.colorbar(image, ax=list(panels[:shown]), shrink=0.8, pad=0.01)
    bar.set_label("share of the mass", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if graph.period(size) is None:
        which = f"the first {shown} rounds"
    elif shown < total:
        which = f"{shown} of the {total} rounds of a period"
    else:
        which = "one period"
    part.suptitle(f"{graph!r} at {size} ranks, {which}", fontsize=10)
