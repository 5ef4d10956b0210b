"""Finds optimizer state that holds points in parameter space and is not exchanged, by its values after some steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..log import log
from ..tensor_kinds import local_part

__all__ = ["Finder", "corner"]

LOOK_AFTER_STEPS = (1, 2, 4, 8, 16)  # Lookahead's slow weights, for one, move every 5 or 6 steps only
NEAR_FRACTION = 0.5  # |s - p| / |p| of a point in parameter space is below this
ALONG_COSINE = 0.7  # or, where p is far from its start: the cosine between what s and p have moved is above this
SAMPLED_PER_AXIS = (16, 8, 2, 2)  # elements that are looked at along the first axes of each parameter; 1 along others


class Finder:
    """Looks at a corner of every parameter and of its state after steps 1, 2, 4, 8 and 16.

    A point in parameter space has the shape and dtype of its parameter, is near it at each look, and moves. A moving
    average of gradients is not near it; a copy of the start, as Prodigy keeps, does not move and is equal on all ranks.

    Args:
        parameters: what is optimized, by name, as it is before the first step.
        known: names of state that is exchanged already.
    """

    def __init__(self, parameters: Mapping[str, Tensor], known: Iterable[str]) -> None:
        self._parameters = list(parameters.values())
        self._known = set(known)
        self._steps = 0
        self._start = [corner(p) for p in self._parameters]  # a few elements of each
        self._first: dict[str, dict[int, Tensor]] = {}  # by name and parameter: how it was first seen
        self._far: set[str] = set()
        self._moved: set[str] = set()

    @property
    def found(self) -> list[str]:
        """Names of state that looked like a point at every look so far."""
        return sorted((self._moved & set(self._first)) - self._far)

    def step_taken(self, optimizer: torch.optim.Optimizer) -> bool:
        """Look, if it is time to; tell whether that was the last look."""
        self._steps += 1
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if self._steps in LOOK_AFTER_STEPS and not capturing:
            try:
                self._look(optimizer)
            except Exception as error:  # state of an unknown kind: a step must not fail for a hint
                log.debug("state of %s was not looked at: %s", type(optimizer).__name__, error)
                self._moved.clear()
                return True
        return self._steps >= LOOK_AFTER_STEPS[-1]

    def _look(self, optimizer: torch.optim.Optimizer) -> None:
        candidates: dict[str, dict[int, Tensor]] = {}
        for index, parameter in enumerate(self._parameters):
            entries = optimizer.state.get(parameter)
            for name, value in entries.items() if isinstance(entries, dict) else ():
                if name not in self._known and name not in self._far and _is_alike(value, parameter):
                    candidates.setdefault(name, {})[index] = corner(value)
        for name, corners in candidates.items():
            self._judge(name, corners)

    def _judge(self, name: str, corners: dict[int, Tensor]) -> None:
        now = torch.cat(list(corners.values()))
        held = torch.cat([corner(self._parameters[index]) for index in corners])
        start = torch.cat([self._start[index] for index in corners])
        near = (now - held).norm() <= NEAR_FRACTION * held.norm()
        along = torch.dot(now - start, held - start) >= ALONG_COSINE * (now - start).norm() * (held - start).norm()
        moved_far = start.norm() <= (held - start).norm()
        if not (near or (moved_far and along)):
            self._far.add(name)
        first = self._first.setdefault(name, {})
        for index, seen in corners.items():
            if not torch.equal(first.setdefault(index, seen), seen):
                self._moved.add(name)

    def advice(self) -> str:
        """Return what to tell the user."""
        names = ", ".join(map(repr, self.found))
        return (
            f"the optimizer's state {names} looks like points in parameter space, and only parameters are exchanged: "
            f"each rank's own would pull its model away from the others', and averaged() would not average it. Pass "
            f"gossip_state=({names},) to exchange it with the parameters"
        )


def _is_alike(value: Any, parameter: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    same = value.shape == parameter.shape and value.dtype == parameter.dtype and value.is_floating_point()
    return same and value.numel() > 0 and value is not parameter and not _shares(value, parameter)


def _shares(value: Tensor, parameter: Tensor) -> bool:
    return not hasattr(value, "to_local") and value.data_ptr() == parameter.data_ptr()


def corner(tensor: Tensor) -> Tensor:
    """Return a few elements in float64, on the host."""
    local = local_part(tensor)
    local = local.detach()
    if local.layout != torch.strided or not local.is_floating_point():
        return torch.zeros(0, dtype=torch.float64)
    part = local[
        tuple(slice(0, SAMPLED_PER_AXIS[axis] if axis < len(SAMPLED_PER_AXIS) else 1) for axis in range(local.dim()))
    ]
    return part.reshape(-1).to("cpu", torch.float64, copy=True)
