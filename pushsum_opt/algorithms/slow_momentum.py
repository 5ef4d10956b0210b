"""Slow momentum over an exact average now and then (SlowMo)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigurationError
from ..interrupts import held_back
from ..push_sum import PushSum
from ..tensor_kinds import local_part
from .base import Algorithm, count

__all__ = ["SlowMomentum"]


class SlowMomentum(Algorithm):
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
    moves_alone = True

    def __init__(self, every: int, momentum: float = 0.5, lr: float = 1.0) -> None:
        self.every = count("every", every, 1)
        if not 0.0 <= momentum < 1.0:
            raise ConfigurationError(f"momentum={momentum!r}: expected a number from 0 on, below 1")
        if not 0.0 < lr < float("inf"):
            raise ConfigurationError(f"lr={lr!r}: expected a finite number above 0")
        self.momentum = float(momentum)
        self.lr = float(lr)
        # By id of the parameter, because groups may change; each entry holds its parameter too. In the order of the
        # groups.
        self._held: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # parameter, y, u
        self._loaded: list[tuple[Tensor, Tensor]] = []  # (y, u) from a file, until the next slow step

    def bind(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        if any("lr" not in group for group in param_groups):
            raise ConfigurationError(f"{self!r}: a parameter group has no 'lr', which the slow step divides by")
        self._held = {id(p): (p, x.clone(), torch.zeros_like(x)) for p, x, _ in _parameters(param_groups)}

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
        loaded, self._loaded = iter(self._loaded), []
        before, self._held = self._held, {}
        for parameter, x, gamma in _parameters(param_groups):
            if id(parameter) in before:
                y, u = before[id(parameter)][1:]
            else:  # the parameter is new, or another file was loaded: it starts here
                y, u = next(loaded, None) or (x.clone(), torch.zeros_like(x))
            y, u = y.to(x.device), u.to(x.device)  # read from a file, or the model has moved
            self._held[id(parameter)] = parameter, y, u
            if gamma:
                u.mul_(self.momentum).add_(y - x, alpha=1.0 / gamma)
                y.add_(u, alpha=-self.lr * gamma)
                x.copy_(y)
            else:
                y.copy_(x)

    def state_dict(self) -> dict[str, Any]:
        pairs = self._loaded or [(y, u) for _, y, u in self._held.values()]
        return {"before": [y for y, _ in pairs], "slow": [u for _, u in pairs]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._held = {}
        # Without an entry, as in a file of another optimizer: begin at the next slow step.
        pairs = zip(state_dict.get("before", ()), state_dict.get("slow", ()), strict=True)
        self._loaded = [(y.clone(), u.clone()) for y, u in pairs]

    def __repr__(self) -> str:
        return f"SlowMomentum(every={self.every}, momentum={self.momentum}, lr={self.lr})"


def _parameters(param_groups: list[dict[str, Any]]) -> list[tuple[Tensor, Tensor, float]]:
    """Return every parameter, once, with this rank's part of it and the learning rate of its group."""
    found: dict[int, tuple[Tensor, Tensor, float]] = {}
    for group in param_groups:
        for parameter in group["params"]:
            local = local_part(parameter)
            found[id(parameter)] = (parameter, local.detach(), float(group["lr"]))
    return list(found.values())
