"""A table of numbers as colours: who waits for whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from .axes import labels as tick_labels
from .axes import ticks
from .svg import LETTER, Picture, number

__all__ = ["draw_heat"]

LEVELS = 24
FAINTEST = 0.08
LARGEST_CELL = 34.0
LEAST_BETWEEN_LABELS = 16.0
CELLS_WITH_TITLES = 1200
"""Of more cells, those of one colour are one shape, to keep the page small."""


def draw_heat(
    values: Mapping[tuple[int, int], float],
    labels: Sequence[str],
    rows: str,
    columns: str,
    unit: str,
    width: float,
    name: str,
) -> Picture:
    """Draw a square for each (row, column): the darker the more.

    Args:
        values: only those above 0.
        labels: of rows and columns alike.
        unit: of the values.
    """
    count = len(labels)
    left = 28 + LETTER * max(map(len, labels))
    top = 38.0
    cell = min(LARGEST_CELL, (width - left - 4) / count)
    if cell > 4:
        cell = float(int(cell))
    bottom = top + cell * count
    picture = Picture(width, bottom + 52, name)
    picture.text(left, 11, columns, "name")
    picture.text(11, bottom, rows, "name", turned=True)
    apart = max(LEAST_BETWEEN_LABELS, LETTER * max(map(len, labels)) + 8)
    every = -(-int(apart) // int(max(1.0, cell)))
    for index in range(0, count, every):
        middle = (index + 0.5) * cell
        picture.text(left - 5, top + middle + 4, labels[index], anchor="end")
        picture.text(left + middle, top - 6, labels[index], anchor="middle")
    picture.rect(left, top, cell * count, cell * count, "empty")
    most = max(values.values(), default=0.0)
    if most > 0:
        _cells(picture, values, labels, most, (left, top, cell), unit)
    _key(picture, most, unit, left, bottom + 24, min(220.0, width - left - 12 - LETTER * len(unit)))
    return picture


def _cells(
    picture: Picture,
    values: Mapping[tuple[int, int], float],
    labels: Sequence[str],
    most: float,
    place: tuple[float, float, float],
    unit: str,
) -> None:
    left, top, cell = place
    gap = 1.0 if cell >= 8 else 0.0
    alike: dict[int, list[str]] = defaultdict(list)
    for (row, column), value in sorted(values.items()):
        level = round(LEVELS * value / most)
        x, y, side = left + column * cell, top + row * cell, cell - gap
        square = f"M{number(x)} {number(y)}h{number(side)}v{number(side)}h-{number(side)}z"
        if len(values) <= CELLS_WITH_TITLES:
            about = f"{labels[row]} waits for {labels[column]}: {value:.3g} {unit}"
            picture.path(square, "heat", about, _opacity(level))
        else:
            alike[level].append(square)
    for level, squares in alike.items():
        picture.path("".join(squares), "heat", opacity=_opacity(level))


def _opacity(level: float) -> float:
    return FAINTEST + (1 - FAINTEST) * level / LEVELS


def _key(picture: Picture, most: float, unit: str, x: float, y: float, width: float) -> None:
    for level in range(LEVELS):
        picture.path(
            f"M{number(x + level * width / LEVELS)} {number(y)}h{number(width / LEVELS)}v8h-{number(width / LEVELS)}z",
            "heat",
            opacity=_opacity(level),
        )
    if most > 0:
        values = ticks(0.0, most, 4)
        for value, label in zip(values, tick_labels(values), strict=True):
            picture.text(x + width * value / most, y + 22, label, anchor="middle")
    picture.text(x + width + 8, y + 9, unit, "name")
