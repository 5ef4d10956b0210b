"""Axes: from values to px, with round numbers at the ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .svg import LETTER, Picture

__all__ = ["FOOT", "Scale", "draw_horizontal", "labels", "rows_of_ticks", "ticks", "time_unit"]

FOOT = 40.0
"""The height of a horizontal axis with its name, in px."""
STEPS = (1.0, 2.0, 2.5, 5.0)


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` lie between ``begin`` and ``end`` px."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return self.begin + min(1.0, max(0.0, part)) * (self.end - self.begin)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers from ``low`` to ``high``, at most ``most`` of them.

    >>> ticks(0.0, 97.0, 6)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    size = 10.0 ** math.floor(math.log10((high - low) / 20))
    for step in (one * size * scale for scale in (1, 10, 100) for one in STEPS):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [float(f"{k * step:.12g}") for k in range(first, last + 1)]
    return [low]


def labels(values: list[float]) -> list[str]:
    """Return the texts of ticks, all with the decimals that their distance needs.

    >>> labels([0.0, 2.5, 5.0]), labels([0.0, 20.0]), labels([1.0])
    (['0', '2.5', '5'], ['0', '20'], ['1'])
    """
    return [f"{value:.12g}" if 1e-4 < abs(value) < 1e6 or value == 0 else f"{value:.3g}" for value in values]


def rows_of_ticks(scale: Scale) -> int:
    """Return how many ticks a vertical axis has room for."""
    return max(3, int(abs(scale.end - scale.begin) / 28))


def time_unit(seconds: float) -> tuple[float, str]:
    """Return what times are divided by, and the unit, where they go up to ``seconds``.

    >>> time_unit(0.2), time_unit(30.0), time_unit(1000.0), time_unit(2e4)
    ((0.001, 'ms'), (1.0, 's'), (60.0, 'min'), (3600.0, 'h'))
    """
    for limit, factor, unit in ((1.0, 1e-3, "ms"), (180.0, 1.0, "s"), (10800.0, 60.0, "min")):
        if seconds < limit:
            return factor, unit
    return 3600.0, "h"


def draw_horizontal(picture: Picture, scale: Scale, name: str, top: float, bottom: float) -> None:
    """Draw ticks, their lines from top to bottom, and below them the name of the axis."""
    width = scale.end - scale.begin
    most = max(3, int(width / 70))
    values = ticks(scale.low, scale.high, most)
    for value, label in zip(values, labels(values), strict=True):
        x = scale(value)
        picture.line(x, top, x, bottom, "grid")
        inside = min(max(x, len(label) * LETTER / 2), picture.width - len(label) * LETTER / 2)
        picture.text(inside, bottom + 15, label, anchor="middle")
    picture.text(scale.begin + width / 2, bottom + 32, name, "name", "middle")
