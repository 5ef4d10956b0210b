"""A few numbers that stand for a whole model: from their spread over ranks follows how far the models are apart.

Each number is the sum of the elements of a sample with signs drawn once, the same on every rank. The square of the
difference of two such sums is, over the draw, the square of the distance of the two samples (Johnson and Lindenstrauss
1984; Achlioptas 2003 for signs). So ranks need not exchange models to know it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np

from ..memory import Memory, Sums

__all__ = ["NUMBERS", "Sketch"]

NUMBERS = 8
"""The more, the nearer the result is to the distance, and the longer the headers: 16 bytes for each."""
SAMPLE = 16384
"""Elements, about: evenly over the model; all of them where there are fewer."""
SEED = 20


class Sketch:
    """Sums up the model of one rank.

    Args:
        lanes: into how many parts the ranks of a host have cut the model; each sums up its own.
        leave_out: gives the identities of tensors that travel and are no parameters.
    """

    def __init__(self, memory: Memory, lanes: int, leave_out: Callable[[], frozenset[int]]) -> None:
        self._memory = memory
        self._lanes = lanes
        self._leave_out = leave_out
        self._made_for: object = None
        self._places: list[tuple[Any, int, slice]] = []
        self._signs: Any = None

    def __call__(self) -> Sums:
        """Begin to sum up the model as it is now; never waits for an accelerator.

        Returns:
            what gives NUMBERS numbers: the squares of their differences between ranks sum to that of the distance. It
            gives None where the model is not finite.
        """
        self._look_at_plan()
        if not self._places:  # other ranks of the host exchange it all
            return Sums(np.zeros(NUMBERS))
        return self._memory.begin_sums(self._places, self._signs)

    def _look_at_plan(self) -> None:
        memory, left_out = self._memory, self._leave_out()
        now = (memory.layout_digest, left_out)
        if now == self._made_for:
            return
        self._made_for, self._places = now, []
        pieces = []
        for chunk in memory.exchanged:
            left = {span.start for span in memory.spans(chunk, left_out)}
            sizes = [piece.numel for piece in chunk.pieces]
            starts = [0, *accumulate(sizes)][:-1]
            if not chunk.by_element:
                pieces += [(chunk, i, sizes[i]) for i in range(len(sizes)) if starts[i] not in left and sizes[i]]
        total = sum(size for _, _, size in pieces)
        step = max(1, total // SAMPLE) | 1  # odd: rows of tensors mostly have even lengths
        begin, taken = 0, 0
        for chunk, number, size in pieces:
            first = -begin % step
            if first < size:
                self._places.append((chunk, number, slice(first, None, step)))
                taken += len(range(first, size, step))
            begin += size
        if taken:
            signs = np.random.default_rng(SEED).integers(0, 2, (NUMBERS, taken)) * 2.0 - 1.0
            self._signs = signs * math.sqrt(self._lanes * total / taken / NUMBERS)
