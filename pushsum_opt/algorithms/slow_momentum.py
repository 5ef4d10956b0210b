"""Slow momentum over an exact average now and then (SlowMo)."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ConfigurationError
from ..interrupts import held_back
from ..push_sum import PushSum
from .base import count, number
from .slow_weights import OuterStep

__all__ = ["SlowMomentum"]


class SlowMomentum(OuterStep):
    """Every H rounds: average exactly, then take one step of heavy-ball momentum on what H rounds have moved.

    SlowMo (Wang, Tantia, Ballas and Rabbat 2020, Algorithm 1). With y the parameters after the last slow step, x the
    exact average now and gamma the learning rate:

        u <- beta u + (y - x) / gamma;   y <- y - alpha gamma u;   all ranks go on from y.

    u and y are the same on every rank. While gamma is 0 the slow step is left out.

    Args:
        every: H, rounds between slow steps; the paper's tau, 12 to 48 there.
        momentum: beta, 0 <= beta < 1; 0.4 to 0.7 in the paper.
        lr: alpha, the slow learning rate, > 0; 1 with ``momentum=0`` is the plain periodic average.

    Memory: two copies of the parameters. The wrapped optimizer's own momentum is kept across slow steps.

    Raises:
        ConfigurationError: an argument is out of range, or the optimizer's groups have no learning rate "lr".

    >>> SlowMomentum(every=48, momentum=0.6)
    SlowMomentum(every=48, momentum=0.6, lr=1.0)
    """

    in_step = True

    def __init__(self, every: int, momentum: float = 0.5, lr: float = 1.0) -> None:
        super().__init__()
        self.every = count("every", every, 1)
        self.momentum = number("momentum", momentum, least=0.0, below=1.0)
        self.lr = number("lr", lr, above=0.0)

    def bind(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        if any("lr" not in group for group in param_groups):
            raise ConfigurationError(f"{self!r}: a parameter group has no 'lr', which the slow step divides by")
        super().bind(push_sum, param_groups)

    def round(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        if (push_sum.round + 1) % self.every:
            push_sum.mix()
            return
        push_sum.average()
        with held_back():  # y, u and the parameters belong together
            self._slow_step(param_groups)

    @torch.inference_mode(False)  # y and u are written to outside of it
    @torch.no_grad()
    def _slow_step(self, param_groups: list[dict[str, Any]]) -> None:
        for one in self._slow.of(param_groups):
            x, y, u, gamma = one.now, one.weights, one.momentum, float(one.group["lr"])
            if gamma:
                u.mul_(self.momentum).add_(y - x, alpha=1.0 / gamma)
                y.add_(u, alpha=-self.lr * gamma)
                x.copy_(y)
            else:
                y.copy_(x)

    def __repr__(self) -> str:
        return f"SlowMomentum(every={self.every}, momentum={self.momentum}, lr={self.lr})"
