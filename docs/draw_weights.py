"""Draws the push weight of one rank over the rounds, in the three modes: docs/images/weights.svg.

    python docs/draw_weights.py

Runs the real rounds, on eight ranks in one process. Asynchronous ranks differ from run to run, so that line does too.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import pushsum_opt as ps
from pushsum_opt.transport import LoopbackComm

PICTURE = Path(__file__).resolve().parent / "images" / "weights.svg"
RANKS, ROUNDS = 8, 24
MODES: dict[int | str, tuple[str, str]] = {
    0: ("synchronous: w = 1", "#4d8a43"),
    1: ("overlapped, staleness 1: w = 2/3", "#3566a8"),
    2: ("overlapped, staleness 2: w = 1/2", "#8a55a8"),
    "unbounded": ("asynchronous: around 3/4; no give leaves less than 1/2", "#b0602a"),
}
LEFT, TOP, WIDTH, HEIGHT = 52, 36, 560, 260  # of the part with the lines, in pixels


def weights(staleness: int | str) -> list[float]:
    """Return w of rank 0 after 0, 1, 2, ... rounds on a regular graph with one peer."""

    def rank(comm: LoopbackComm) -> list[float]:
        graph = ps.graphs.OnePeerExponential()
        with ps.PushSum([np.zeros(4)], graph=graph, staleness=staleness, comm=comm) as push_sum:
            seen = [push_sum.push_weight]
            for _ in range(ROUNDS):
                if staleness == "unbounded":
                    time.sleep(5e-3)  # what a step would take: without it, no message comes before the last round
                push_sum.mix()
                seen.append(push_sum.push_weight)
            return seen

    return ps.testing.run(RANKS, rank, seed=1, spread=1e-3)[0]


def points(values: list[float]) -> str:
    return " ".join(
        f"{LEFT + WIDTH * k / ROUNDS:.1f},{TOP + HEIGHT * (1.2 - w) / 0.8:.1f}" for k, w in enumerate(values)
    )


def picture(lines: dict[int | str, list[float]]) -> str:
    bottom = TOP + HEIGHT
    legend = bottom + 52
    drawn = []
    for value in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2):
        y = TOP + HEIGHT * (1.2 - value) / 0.8
        drawn.append(f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="#d8dbe0"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for k in range(0, ROUNDS + 1, 4):
        drawn.append(f'<text x="{LEFT + WIDTH * k / ROUNDS:.1f}" y="{bottom + 18}" text-anchor="middle">{k}</text>')
    for place, (staleness, values) in enumerate(lines.items()):
        name, colour = MODES[staleness]
        y = legend + 20 * place
        drawn.append(f'<polyline points="{points(values)}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        drawn.append(f'<path d="M{LEFT} {y - 4}h28" stroke="{colour}" stroke-width="3"/>')
        drawn.append(f'<text x="{LEFT + 38}" y="{y}">{name}</text>')
    height = legend + 20 * len(lines)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 28} {height}" role="img" '
            'font-family="system-ui, sans-serif" font-size="14" fill="#1c2b40">',
            "<title>The push weight of one rank over the rounds</title>",
            "<desc>Measured on eight ranks with one out-peer each. Made by docs/draw_weights.py</desc>",
            f'<rect width="{LEFT + WIDTH + 28}" height="{height}" rx="8" fill="#fcfcf9"/>',
            f'<text x="14" y="18">w</text><text x="{LEFT + WIDTH}" y="{bottom + 36}" text-anchor="end">round k</text>',
            *drawn,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture({staleness: weights(staleness) for staleness in MODES}), encoding="utf-8")
