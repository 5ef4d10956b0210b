"""Values over time: the median over ranks as a line, and from the least to the largest as a band."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .axes import FOOT, Scale, draw_horizontal, labels, rows_of_ticks, ticks
from .svg import LETTER, Picture, number

__all__ = ["Line", "Mark", "draw_lines"]

HEIGHT = 210.0
TOP = 26.0
MANY_TIMES = 200.0
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
        from_zero: begin the vertical axis at 0. Otherwise it begins below the least value; and where the largest one is
            some hundred times the least, it is logarithmic.
    """
    picture = Picture(width, HEIGHT, name)
    bottom = HEIGHT - FOOT
    least, most = min(line.low), max(line.high)
    by_powers = not from_zero and least > 0 and most / least >= MANY_TIMES
    height = _powers(least, most, bottom) if by_powers else _even(least, most, from_zero, bottom)
    left = 10 + LETTER * max(len(label) for _, label in height.ticks)
    end = max(line.x[-1], *(mark.x for mark in marks)) if marks else line.x[-1]
    horizontal = Scale(0.0, end if end > 0 else 1.0, left, width - 8)
    for y, label in height.ticks:
        picture.line(left, y, width - 8, y, "grid")
        picture.text(left - 6, y + 4, label, anchor="end")
    picture.text(0, TOP - 10, values, "name")
    draw_horizontal(picture, horizontal, axis, TOP, bottom)
    up = [(horizontal(x), height.of(y)) for x, y in zip(line.x, line.high, strict=True)]
    down = [(horizontal(x), height.of(y)) for x, y in zip(line.x, line.low, strict=True)]
    picture.path(f"{_through([*up, *reversed(down)])}z", "band")
    picture.path(_through([(horizontal(x), height.of(y)) for x, y in zip(line.x, line.middle, strict=True)]), "line")
    for mark in marks:
        x = horizontal(mark.x)
        picture.path(f"M{number(x)} {number(TOP)}V{number(bottom)}", "mark", mark.about)
    return picture


@dataclass(frozen=True)
class _Height:
    """A vertical axis: where a value stands, and which ticks there are."""

    of: Callable[[float], float]
    ticks: list[tuple[float, str]]


def _even(least: float, most: float, from_zero: bool, bottom: float) -> _Height:
    low = 0.0 if from_zero or least <= 0 or least < MOST_ZOOM * most else least - 0.1 * (most - least)
    low = min(low, least)
    high = most + 0.05 * (most - low) if most > low else low + (abs(low) or 1.0) * 0.1
    scale = Scale(low, high, bottom, TOP)
    at = ticks(low, high, rows_of_ticks(scale))
    return _Height(scale, [(scale(value), label) for value, label in zip(at, labels(at), strict=True)])


def _powers(least: float, most: float, bottom: float) -> _Height:
    """Return an axis by powers of ten."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    scale = Scale(low, high, bottom, TOP)
    every = -(-(high - low) // rows_of_ticks(scale))
    powers = range(low, high + 1, every)
    return _Height(lambda value: scale(math.log10(value)), [(scale(power), f"{10.0**power:g}") for power in powers])


def _through(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
