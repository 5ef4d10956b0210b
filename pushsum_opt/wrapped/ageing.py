"""First moments in flight decay there as they would have in a rank's own state.

A rank's m shrinks to b1 m in every local step. A message that is merged some steps after it was given has missed those
steps, so its m is multiplied by b1^steps. Then the sum of mass times m, over ranks and messages, is what it would be
without delay.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from .. import tensor_kinds
from ..push_sum import PushSum
from .points import Points

__all__ = ["Ageing"]

SMALLEST_FACTOR = 1e-6
"""Of b1^steps: m is divided by it for a moment, so it must not become too small."""


class Ageing:
    """Counts local steps, and lets the first moments of late messages decay by the steps that they have missed.

    With ``staleness="unbounded"`` each rank has its own count of steps, and a message is in flight for about a round:
    so its moments decay by one step.

    Args:
        optimizer: its groups have the betas.
        points: has the moments.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, points: Points, name: str) -> None:
        self.optimizer = optimizer
        self._points = points
        self._name = name
        self._steps = 0
        self._given: dict[int, int] = {}  # by round: the local steps before it
        self._push_sum: PushSum | None = None

    def bind(self, push_sum: PushSum) -> None:
        """Take part in the merges of a push-sum. The push-sum does not keep this object alive."""
        self._push_sum = push_sum
        mine = weakref.ref(self)

        def around(sent: int) -> AbstractContextManager[None]:
            one = mine()
            return nullcontext() if one is None else one.merging(sent)

        push_sum.member.around_late_merges = around

    def step_taken(self) -> None:
        self._steps += 1

    def round_begins(self, round: int) -> None:
        """Called before a round gives."""
        assert self._push_sum is not None
        tau = self._push_sum.staleness
        if isinstance(tau, int) and tau:
            self._given[round] = self._steps
            self._given = {sent: steps for sent, steps in self._given.items() if sent >= round - tau}

    @contextmanager
    def merging(self, sent: int) -> Iterator[None]:
        """Inside, messages of a round are merged into m / b1^steps; afterwards that is multiplied by b1^steps."""
        steps = self._age(sent)
        if steps:
            self._scale(steps, backwards=True)
        yield
        if steps:
            self._scale(steps, backwards=False)

    def _age(self, sent: int) -> int:
        assert self._push_sum is not None
        if self._push_sum.staleness == "unbounded":
            return 1
        if sent in self._given:
            return self._steps - self._given[sent]
        return self._push_sum.round - sent  # the state was loaded without these counts

    @torch.no_grad()
    def _scale(self, steps: int, *, backwards: bool) -> None:
        for group in self.optimizer.param_groups:
            factor = max(float(group["betas"][0]) ** steps, SMALLEST_FACTOR)
            slots = [self._points.slot(parameter, self._name) for parameter in group["params"]]
            local = [tensor_kinds.local_part(slot) for slot in slots if slot is not None]
            if local:
                torch._foreach_mul_(local, 1.0 / factor if backwards else factor)

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "given": dict(self._given)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned, or from nothing."""
        self._steps = int(state.get("steps", 0))
        self._given = {int(sent): int(steps) for sent, steps in state.get("given", {}).items()}
