"""Bars of several parts, one for each rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import FOOT, Scale, draw_horizontal
from .svg import LETTER, Picture

__all__ = ["Bar", "draw_bars", "row_labels", "row_height"]

LEAST_BETWEEN_LABELS = 13.0


@dataclass(frozen=True)
class Bar:
    """One rank: how long each part is, in the unit of the axis."""

    label: str
    parts: Sequence[float]
    about: str
    marked: bool = False


def row_height(count: int) -> float:
    """Return how high a row is, in px, where there are so many."""
    return 20.0 if count <= 16 else 15.0 if count <= 32 else 11.0


def row_labels(picture: Picture, labels: Sequence[tuple[str, bool]], top: float, height: float, right: float) -> None:
    """Write the labels of rows, ending at ``right``: all that have room, and those that are marked before others."""
    taken: list[float] = []
    order = sorted(range(len(labels)), key=lambda index: (not labels[index][1], index))
    for index in order:
        y = top + (index + 0.5) * height
        if all(abs(y - other) >= LEAST_BETWEEN_LABELS for other in taken):
            taken.append(y)
            text, marked = labels[index]
            picture.text(right, y + 4, text, "marked" if marked else "", "end")


def draw_bars(bars: Sequence[Bar], kinds: Sequence[str], axis: str, rows: str, width: float, name: str) -> Picture:
    """Draw a bar for each rank.

    Args:
        kinds: the class of each part.
        axis: the name of the horizontal axis, with its unit.
        rows: the name of the rows.
    """
    height = row_height(len(bars))
    left = 10 + LETTER * max(len(bar.label) for bar in bars)
    top = 18.0
    bottom = top + height * len(bars)
    picture = Picture(width, bottom + FOOT, name)
    most = max(sum(bar.parts) for bar in bars)
    scale = Scale(0.0, most * 1.02 or 1.0, left, width - 8)
    draw_horizontal(picture, scale, axis, top, bottom)
    picture.text(0, 11, rows, "name")
    row_labels(picture, [(bar.label, bar.marked) for bar in bars], top, height, left - 5)
    for index, bar in enumerate(bars):
        begin = 0.0
        for part, kind in zip(bar.parts, kinds, strict=True):
            if part > 0:
                x, end = scale(begin), scale(begin + part)
                picture.rect(x, top + index * height + 1, end - x, height - 2, kind, bar.about)
            begin += part
    return picture
