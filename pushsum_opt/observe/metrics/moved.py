"""How far this rank's model has moved in the last rounds: the consensus distance should be small against that."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

__all__ = ["Moved"]

SAMPLE = 4096
"""Elements, about: evenly over the model; all of them where there are fewer."""
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
            sample, scale = self._look()
            if self._looks and len(self._looks[-1][1]) != len(sample):
                self._looks.clear()  # parameters were added
            self._looks.append((round, sample))
            first, then = self._looks[0]
            distance = scale * float(np.linalg.norm(sample - then))
            known = first < round and len(sample) and math.isfinite(distance)
            self._found = {"distance": distance, "rounds": float(round - first)} if known else {}
        return self._found

    def _look(self) -> tuple[Any, float]:
        """Return some elements, and by what their norm is multiplied to stand for all."""
        flat = [one.reshape(-1) for one in self._parameters() if _on_host(one)]
        total = sum(map(len, flat))
        step = max(1, total // SAMPLE) | 1  # odd: rows of tensors mostly have even lengths
        taken, begin = [], 0
        for one in flat:
            first = -begin % step
            if first < len(one):
                taken.append(_values(one[first::step]))
            begin += len(one)
        sample = np.concatenate(taken) if taken else np.zeros(0)
        return sample, math.sqrt(total / max(1, len(sample)))


def _on_host(tensor: Any) -> bool:
    return isinstance(tensor, np.ndarray) or tensor.device.type == "cpu"


def _values(elements: Any) -> Any:
    if isinstance(elements, np.ndarray):
        return elements.copy()
    own = elements.detach()
    return (own if own.is_complex() else own.double()).resolve_conj().numpy().copy()
