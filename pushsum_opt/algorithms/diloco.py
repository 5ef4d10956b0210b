"""A rare exact average of all ranks, with outer Nesterov momentum (DiLoCo)."""

from __future__ import annotations

from typing import Any

import torch

from ..interrupts import held_back
from ..push_sum import PushSum
from .base import count, number
from .slow_weights import OuterStep

__all__ = ["DiLoCo"]


class DiLoCo(OuterStep):
    """Every H steps, all ranks average exactly and take an outer step with Nesterov momentum.

    DiLoCo (Douillard et al. 2023, arXiv 2311.08105, Algorithm 1, with Nesterov SGD as the outer optimizer, as torch
    writes it). Between outer steps a rank trains alone, from the slow weights phi, and comes to theta_i. Then

        g = phi - mean(theta);   b <- mu b + g;   phi <- phi - lr (g + mu b),

    and all ranks go on from phi. phi and b are the same on every rank; the mean counts data weights.

    Args:
        every: H, local steps between outer steps; 500 in the paper, and 50 to 2000 were tried there.
        outer_lr: lr, > 0; 0.7 in the paper.
        outer_momentum: mu, 0 <= mu < 1; 0.9 in the paper.

    An outer step costs an all-reduce of the parameters in float64 and waits for every rank. With a ``wire_dtype`` of
    32 bits or fewer the all-reduce is in float32; MPI adds nothing narrower.

    Memory: two copies of the parameters. The wrapped optimizer keeps its state across outer steps. ``gossip_every``
    stays 1: ``every`` says when a round is due.

    Raises:
        ConfigurationError: an argument is out of range.

    >>> DiLoCo(every=500)
    DiLoCo(every=500, outer_lr=0.7, outer_momentum=0.9)
    """

    synchronous = True

    def __init__(self, every: int = 500, outer_lr: float = 0.7, outer_momentum: float = 0.9) -> None:
        super().__init__()
        self.local_steps = count("every", every, 1)
        self.outer_lr = number("outer_lr", outer_lr, above=0.0)
        self.outer_momentum = number("outer_momentum", outer_momentum, least=0.0, below=1.0)

    @torch.inference_mode(False)  # what is made here is written to outside of it
    @torch.no_grad()
    def round(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        push_sum.average(narrow=_is_narrow(push_sum.member.options.wire_dtype))
        with held_back():  # slow weights, momentum and parameters belong together
            for one in self._slow.of(param_groups):
                g = one.weights - one.now
                one.momentum.mul_(self.outer_momentum).add_(g)
                one.weights.sub_(g.add_(one.momentum, alpha=self.outer_momentum), alpha=self.outer_lr)
                one.now.copy_(one.weights)

    def __repr__(self) -> str:
        return f"DiLoCo(every={self.local_steps}, outer_lr={self.outer_lr}, outer_momentum={self.outer_momentum})"


def _is_narrow(wire_dtype: Any) -> bool:
    """Tell whether it is given, and of 32 bits or fewer."""
    return wire_dtype is not None and "64" not in str(wire_dtype)
