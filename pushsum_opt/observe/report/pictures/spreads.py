"""How values of each rank are spread: a line from the 1st to the 99th of 100, a box from the 25th to the 75th."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .axes import FOOT, Scale, draw_horizontal
from .bars import row_height, row_labels
from .svg import LETTER, Picture

__all__ = ["PARTS", "Spread", "draw_spreads"]

PARTS = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass(frozen=True)
class Spread:
    """One rank: the values below which so many lie, for each of ``PARTS``."""

    label: str
    values: Sequence[float]
    about: str
    marked: bool = False


def draw_spreads(spreads: Sequence[Spread], axis: str, rows: str, width: float, name: str) -> Picture:
    """Draw a line and a box for each rank. Arguments as those of bars."""
    height = row_height(len(spreads))
    left = 10 + LETTER * max(len(one.label) for one in spreads)
    top = 18.0
    bottom = top + height * len(spreads)
    picture = Picture(width, bottom + FOOT, name)
    scale = Scale(0.0, max(one.values[-1] for one in spreads) * 1.05 or 1.0, left, width - 8)
    draw_horizontal(picture, scale, axis, top, bottom)
    picture.text(0, 11, rows, "name")
    row_labels(picture, [(one.label, one.marked) for one in spreads], top, height, left - 5)
    for index, one in enumerate(spreads):
        y = top + (index + 0.5) * height
        least, low, middle, high, most = map(scale, one.values)
        thick = height * 0.6
        picture.rect(least, y - 1, max(1.0, most - least), 2, "whisker", one.about)
        picture.rect(low, y - thick / 2, max(2.0, high - low), thick, "box", one.about)
        picture.rect(middle - 1.5, y - thick / 2, 3, thick, "middle", one.about)
    return picture
