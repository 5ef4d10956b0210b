"""Draws the rooms of the library from its imports, and lists them by their docstrings.

    python docs/draw_rooms.py

writes docs/images/rooms.svg and the table of docs/architecture.md anew. A room is a folder or a file at the top of the
package. It stands one floor above the highest room that it imports. A line means "imports"; lines that follow from
others are left out: where A imports B and B imports C, none leads from A to C. A floor with many rooms
takes two rows of the picture.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pushsum_opt"
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
PAGE = ROOT / "docs" / "architecture.md"

SEAMS = ("gossip", "graphs", "memory", "transport")
"""Rooms with one protocol and several implementations of it: drawn in another colour."""

WIDTH, ROW, BOX, MARGIN = 560, 58, 28, 14  # of the picture, a floor, a box and the border, in pixels
PER_LETTER, PADDING, GAP = 8, 14, 8

Rooms = dict[str, set[str]]


def read_imports(package: Path = PACKAGE) -> Rooms:
    """Return which other rooms each room imports."""
    files = {path: ".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")}
    known = {name.removesuffix(".__init__") for name in files.values()}
    found: Rooms = {}
    for path, name in files.items():
        if name not in ("__init__", "__main__"):
            here = room(name)
            there = {room(target) for target in imported(path, name, known, package.name)}
            found.setdefault(here, set()).update(there - {here})
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def imported(path: Path, name: str, known: set[str], package: str) -> Iterator[str]:
    """List the modules of the package that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = name.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            if not node.level:
                if base[0] != package:
                    continue
                base = base[1:]
            members = [".".join([*base, alias.name]) for alias in node.names]
            yield from (member if member in known else ".".join(base) for member in members)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".", 1)[1] for alias in node.names if alias.name.startswith(f"{package}."))


def floors(imports: Rooms) -> list[list[str]]:
    """Return the rooms by floor, from the ground up.

    >>> floors({"optimizer": {"graphs", "errors"}, "graphs": {"errors"}, "errors": set(), "world": set()})
    [['errors', 'world'], ['graphs'], ['optimizer']]
    """

    @cache
    def floor(name: str) -> int:
        below = [floor(other) for other in imports[name]]
        return 1 + max(below) if below else 0

    try:
        heights = {name: floor(name) for name in sorted(imports)}
    except RecursionError:
        raise ValueError("rooms import each other in a circle: no room of it can stand above the others") from None
    return [[name for name in heights if heights[name] == height] for height in range(max(heights.values()) + 1)]


def lines(imports: Rooms) -> Rooms:
    """Leave out what follows from other imports.

    >>> lines({"optimizer": {"graphs", "errors"}, "graphs": {"errors"}, "errors": set()})
    {'optimizer': {'graphs'}, 'graphs': {'errors'}, 'errors': set()}
    """

    @cache
    def beneath(name: str) -> frozenset[str]:
        return frozenset(imports[name]).union(*(beneath(other) for other in imports[name]))

    return {name: there - set().union(*map(beneath, there)) for name, there in imports.items()}


# ---------------------------------------------------------------------- the picture


def picture(imports: Rooms) -> str:
    shown = lines(imports)
    places, height = place(floors(imports), shown)
    drawn = [curve(places[a], places[b]) for a in sorted(shown) for b in sorted(shown[a])]
    drawn += [box(name, *places[name]) for name in sorted(places)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13">',
            "<title>The rooms of pushsum_opt</title>",
            "<desc>Every box is a room; a line leads down to a room that it imports. Made by docs/draw_rooms.py</desc>",
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fcfcf9"/>',
            *drawn,
            "</svg>",
            "",
        ]
    )


Place = tuple[float, float, float]
"""x and y of the middle of a box, and its width."""


def place(storeys: list[list[str]], shown: Rooms) -> tuple[dict[str, Place], int]:
    """Return where each box goes, about above what it imports, and the height of the whole."""
    places: dict[str, Place] = {}
    y = 0.0  # of the ground; the floors above it are negative until the height is known
    for names in storeys:
        wanted = {name: mean([places[other][0] for other in shown[name]]) for name in names}
        for row in rows(sorted(names, key=lambda name: (wanted[name], name))):
            places.update({name: (x, y, width(name)) for name, x in side_by_side(row, wanted)})
            y -= ROW
    top = -y - ROW
    moved = {name: (x, y + top + MARGIN + BOX / 2, wide) for name, (x, y, wide) in places.items()}
    return moved, round(top + 2 * MARGIN + BOX)


def width(name: str) -> float:
    return PADDING + PER_LETTER * len(name)


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else WIDTH / 2


def rows(names: list[str]) -> list[list[str]]:
    """Cut a floor with too many boxes for one row into rows of about equally many."""
    room = WIDTH - 2 * MARGIN + GAP
    count = math.ceil(sum(width(name) + GAP for name in names) / room)
    return [names[place::count] for place in range(count)]


def side_by_side(names: list[str], wanted: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Give each box of a row its middle: near to where it is wanted, or evenly spread where there are many."""
    behind = sum(width(name) + GAP for name in names) - GAP
    even = (WIDTH - 2 * MARGIN - behind) / (len(names) + 1)
    left = float(MARGIN)
    for name in names:
        last = WIDTH - MARGIN - behind
        start = left + even if len(names) > 3 else min(max(wanted[name] - width(name) / 2, left), last)
        yield name, start + width(name) / 2
        left = start + width(name) + GAP
        behind -= width(name) + GAP


def curve(above: Place, below: Place) -> str:
    (x1, y1, _), (x2, y2, _) = above, below
    y1, y2 = y1 + BOX / 2, y2 - BOX / 2
    bend = min(40.0, (y2 - y1) / 2)
    return (
        f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}" '
        'fill="none" stroke="#8a93a3" stroke-width="1.2"/>'
    )


def box(name: str, x: float, y: float, width: float) -> str:
    fill, line = ("#e2f1de", "#4d8a43") if name in SEAMS else ("#dfe9f7", "#4a6fa5")
    return (
        f'<rect x="{x - width / 2:.0f}" y="{y - BOX / 2:.0f}" width="{width:.0f}" height="{BOX}" rx="5" '
        f'fill="{fill}" stroke="{line}"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" fill="#1c2b40">{escape(name)}</text>'
    )


# ---------------------------------------------------------------------- the table


def table(imports: Rooms, package: Path = PACKAGE) -> str:
    """List the rooms from the top down, each with the first paragraph of its docstring."""
    rows = [f"| `{name}` | {purpose(name, package)} |" for floor in reversed(floors(imports)) for name in floor]
    return "\n".join(["| room | what lives there |", "|---|---|", *rows, ""])


def purpose(name: str, package: Path) -> str:
    path = package.joinpath(*name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    said = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(said.split("\n\n")[0].split())
    return re.sub(r"(:\w+:)?`+([^`]+)`+", r"`\2`", paragraph).replace("|", "\\|")


def with_table(page: str, rows: str) -> str:
    """Return a page with the rows in the place that is marked for them.

    >>> with_table("a <!-- rooms --> old <!-- end --> b", "new")
    'a <!-- rooms -->\\n\\nnew\\n<!-- end --> b'
    """
    return re.sub(
        r"(<!-- rooms -->).*?(<!-- end -->)", lambda mark: f"{mark[1]}\n\n{rows}\n{mark[2]}", page, flags=re.S
    )


if __name__ == "__main__":
    found = read_imports()
    PICTURE.write_text(picture(found), encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(found)), encoding="utf-8")
