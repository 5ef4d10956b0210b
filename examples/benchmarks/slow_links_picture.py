"""Draws the rows of slow_links_table.py: loss over bytes, one point per contender, one panel per number of ranks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator

COLOURS = {"ddp": "#1c2b40", "sgp": "#3566a8", "noloco": "#4d8a43", "diloco": "#b0602a"}
LEFT, TOP, WIDTH, HEIGHT, BETWEEN = 56, 44, 560, 250, 84  # of a panel, in pixels
GROUND = "#fcfcf9"


def draw(lines: list[dict]) -> str:
    """Return an SVG of lines of the table, as ``lines()`` of slow_links_table gives them."""
    settings = sorted({(line["ranks"], line["steps"], line["batch"]) for line in lines})
    drawn: list[str] = []
    for place, setting in enumerate(settings):
        own = [line for line in lines if (line["ranks"], line["steps"], line["batch"]) == setting]
        drawn += panel(own, TOP + place * (HEIGHT + BETWEEN))
    height = TOP + len(settings) * (HEIGHT + BETWEEN) - 24
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 140} {height}" role="img" '
            'font-family="system-ui, sans-serif" font-size="13" fill="#1c2b40">',
            "<title>Validation loss of a small language model over the bytes that a rank has sent</title>",
            "<desc>Means over seeds at the best rate, and the range. Made by slow_links_table.py --svg</desc>",
            f'<rect width="{LEFT + WIDTH + 140}" height="{height}" rx="8" fill="{GROUND}"/>',
            *drawn,
            "</svg>",
            "",
        ]
    )


def panel(lines: list[dict], top: float) -> Iterator[str]:
    """Draw the axes and the points of one setting."""
    first = lines[0]
    losses = [loss for line in lines for loss in line["losses"].values()]
    low, high = math.floor(min(losses) * 20) / 20, math.ceil(max(losses) * 20) / 20
    senders = [line["bytes"] for line in lines if line["bytes"]]
    least, most = (math.floor(math.log10(min(senders))),
                   math.ceil(math.log10(max(senders))))  # fmt: skip

    def x(sent: float) -> float:
        return LEFT + WIDTH * (math.log10(sent) - least) / (most - least)

    def y(loss: float) -> float:
        return top + HEIGHT * (high - loss) / (high - low)

    yield f'<text x="14" y="{top - 16}" font-weight="600">{first["ranks"]} ranks, {first["steps"]} steps, '
    yield f"{first['batch']} pieces per rank and step: loss in nats per byte</text>"
    for k in range(round((high - low) * 20) + 1):
        value = low + k / 20
        yield f'<path d="M{LEFT} {y(value):.1f}h{WIDTH}" stroke="#d8dbe0"/>'
        if k % 2 == 0 or high - low < 0.3:
            yield f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>'
    for power in range(least, most + 1):
        yield f'<text x="{x(10.0**power):.1f}" y="{top + HEIGHT + 18}" text-anchor="middle">{size(power)}</text>'
    yield f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 36}" text-anchor="end">bytes sent per rank</text>'
    named: list[tuple[float, float]] = []
    for line in lines:
        if line["bytes"]:
            place = x(line["bytes"]), y(statistics.fmean(line["losses"].values()))
            beside = any(abs(place[0] - across) < 100 and abs(place[1] - down) < 12 for across, down in named)
            named.append(place)
            yield from point(line, *place, y, left=beside)
        else:
            across = y(statistics.fmean(line["losses"].values()))
            yield f'<path d="M{LEFT} {across:.1f}h{WIDTH}" stroke="#7a8290" stroke-width="2" stroke-dasharray="6 5"/>'
            yield f'<text x="{LEFT + WIDTH + 9}" y="{across + 4:.1f}" font-size="12">alone, 0 bytes</text>'


def point(line: dict, across: float, down: float, y: Callable[[float], float], *, left: bool) -> Iterator[str]:
    """Draw a point with its range, and its name: on the left where the right is taken."""
    values = list(line["losses"].values())
    colour = COLOURS[line["who"].partition("/")[0]]
    hollow = line["wire"] != "float32"
    yield f'<path d="M{across:.1f} {y(max(values)):.1f}V{y(min(values)):.1f}" stroke="{colour}" stroke-width="2"/>'
    fill = GROUND if hollow else colour
    yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
    outer = f" ({line['outer'].replace(',', ', ')})" if line["outer"] else ""
    name = line["who"] + (f" {line['wire']}" if hollow else "") + outer
    side = f'x="{across - 9:.1f}" text-anchor="end"' if left else f'x="{across + 9:.1f}"'
    yield f'<text {side} y="{down + 4:.1f}" font-size="12">{name}</text>'


def size(power: int) -> str:
    """Name a power of ten of bytes.

    >>> [size(power) for power in (3, 5, 7, 9)]
    ['1 kB', '100 kB', '10 MB', '1 GB']
    """
    return f"{10 ** (power % 3)} {('B', 'kB', 'MB', 'GB', 'TB')[power // 3]}"
