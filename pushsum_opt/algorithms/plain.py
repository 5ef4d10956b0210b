"""Gossip in every round: the default algorithm."""

from __future__ import annotations

from typing import Any

from ..push_sum import PushSum
from .base import Algorithm

__all__ = ["Gossip"]


class Gossip(Algorithm):
    """Every round gossips: Stochastic Gradient Push (Assran et al. 2019, Algorithm 1)."""

    def round(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        push_sum.mix()

    def __repr__(self) -> str:
        return "Gossip()"
