"""Values over time: the median over ranks as a line, and from the least to the largest as a band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import FOOT, Scale, draw_horizontal, draw_vertical, labels, rows_of_ticks, ticks
from .svg import LETTER, Picture, number

__all__ = ["Line", "Mark", "draw_lines"]

HEIGHT = 210.0
TOP = 26.0
MOST_ZOOM = 0.5
"""Where the least value is more than this part of the largest, the axis need not begin at 0."""


@dataclass(frozen=True)
class Line:
    """What is drawn: x, and of all ranks the least value, the median and the largest."""

    x: Sequence[float]
    low: Sequence[float]
    middle: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Mark:
    """A moment at which something happened."""

    x: float
    about: str


def draw_lines(
    line: Line, axis: str, values: str, width: float, name: str, *, marks: Sequence[Mark] = (), from_zero: bool = True
) -> Picture:
    """Draw a line and its band.

    Args:
        axis, values: names of the axes, with units. The horizontal one begins at 0.
        marks: moments that are marked by a line.
        from_zero: begin the vertical axis at 0.
    """
    picture = Picture(width, HEIGHT, name)
    bottom = HEIGHT - FOOT
    least, most = min(line.low), max(line.high)
    low = 0.0 if from_zero or least <= 0 or least < MOST_ZOOM * most else least - 0.1 * (most - least)
    low = min(low, least)
    high = most + 0.05 * (most - low) if most > low else low + (abs(low) or 1.0) * 0.1
    vertical = Scale(low, high, bottom, TOP)
    texts = labels(ticks(low, high, rows_of_ticks(vertical)))
    left = 10 + LETTER * max(map(len, texts))
    end = max(line.x[-1], *(mark.x for mark in marks)) if marks else line.x[-1]
    horizontal = Scale(0.0, end if end > 0 else 1.0, left, width - 8)
    draw_vertical(picture, vertical, values, left, width - 8)
    draw_horizontal(picture, horizontal, axis, TOP, bottom)
    up = [(horizontal(x), vertical(y)) for x, y in zip(line.x, line.high, strict=True)]
    down = [(horizontal(x), vertical(y)) for x, y in zip(line.x, line.low, strict=True)]
    picture.path(f"{_through([*up, *reversed(down)])}z", "band")
    picture.path(_through([(horizontal(x), vertical(y)) for x, y in zip(line.x, line.middle, strict=True)]), "line")
    for mark in marks:
        x = horizontal(mark.x)
        picture.path(f"M{number(x)} {number(TOP)}V{number(bottom)}", "mark", mark.about)
    return picture


def _through(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
