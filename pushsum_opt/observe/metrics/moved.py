"""How far this rank's model has moved in the last rounds: the consensus distance should be small against that."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import numpy as np

__all__ = ["Moved"]

PLACES = 128
"""So many, evenly over the model, are looked at: the more, the longer a look takes with many small tensors."""
RUN = 32
"""Elements that follow each other at a place; where a model has no more than PLACES * RUN, all of it is looked at."""
LOOK_EVERY = 100
"""Rounds from one look at the model to the next, at least."""
LOOKS_KEPT = 10
"""The distance is that from the oldest look that is kept."""


class Moved:
    """Looks at a sample of the parameters now and then, and keeps what it saw.

    Args:
        parameters: gives them; torch tensors or numpy arrays. On an accelerator nothing is measured, as a look would
            have to wait for it.
    """

    def __init__(self, parameters: Callable[[], Iterable[Any]]) -> None:
        self._parameters = parameters
        self._looks: deque[tuple[int, Any]] = deque(maxlen=LOOKS_KEPT + 1)
        self._found: dict[str, float] = {}

    def since_then(self, round: int) -> dict[str, float]:
        """Return "distance", estimated from the sample, and in how many "rounds"; empty: not known yet.

        It is measured anew where so many rounds have passed since the last look.
        """
        if not self._looks or round - self._looks[-1][0] >= LOOK_EVERY:
            sample = self._look()
            if self._looks and len(self._looks[-1][1]) != len(sample):
                self._looks.clear()  # parameters were added
            self._looks.append((round, sample))
            first, then = self._looks[0]
            distance = float(np.linalg.norm(sample - then))
            known = first < round and len(sample) and math.isfinite(distance)
            self._found = {"distance": distance, "rounds": float(round - first)} if known else {}
        return self._found

    def _look(self) -> Any:
        """Return some elements, each multiplied so that their norm stands for that of all."""
        tensors = [one for one in self._parameters() if _on_host(one)]
        ends = list(accumulate(math.prod(one.shape) for one in tensors))
        total = ends[-1] if ends else 0
        if total <= PLACES * RUN:
            return np.concatenate([np.zeros(0), *(_values(_flat(one)) for one in tensors)])
        taken = []
        for place in range(PLACES):
            at = (2 * place + 1) * total // (2 * PLACES)
            number = bisect_right(ends, at)
            flat = _flat(tensors[number])
            begin = max(0, min(at - ends[number] + len(flat), len(flat) - RUN))
            run = _values(flat[begin : begin + RUN])
            taken.append(run * math.sqrt(total / PLACES / len(run)))
        return np.concatenate(taken)


def _on_host(tensor: Any) -> bool:
    return isinstance(tensor, np.ndarray) or tensor.device.type == "cpu"


def _flat(tensor: Any) -> Any:
    """Return its elements as they lie in memory, where they lie close together: without a copy of them."""
    strides = tensor.strides if isinstance(tensor, np.ndarray) else tensor.stride()
    order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
    own = tensor if isinstance(tensor, np.ndarray) else tensor.detach()
    return (own.transpose(order) if isinstance(own, np.ndarray) else own.permute(order)).reshape(-1)


def _values(elements: Any) -> Any:
    if isinstance(elements, np.ndarray):
        return elements.copy()
    return (elements if elements.is_complex() else elements.double()).resolve_conj().numpy().copy()
