"""Gossip with an exact average now and then (Gossip-PGA), and at the beginning (all-reduce, then gossip)."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigurationError
from ..push_sum import PushSum
from .base import Algorithm, count

__all__ = ["PeriodicAverage"]


class PeriodicAverage(Algorithm):
    """Replaces some rounds of gossip by the exact average over all ranks.

    With ``every=H``: Gossip-PGA (Chen, Yuan, Zhang, Pan, Xu and Yin 2021, Algorithm 1). It bounds how far ranks drift
    apart, which helps on slowly mixing graphs and with data that differs between ranks. With ``first=K``: the hybrid of
    Assran et al. (2019, appendix A), all-reduce while parameters move fast and gossip afterwards.

    Args:
        every: H; rounds H-1, 2H-1, ... are exact averages. None: no periodic ones.
        first: K; rounds 0 to K-1 are exact averages.

    Each exact average costs an all-reduce of the parameters in float64 and waits for every rank.

    Raises:
        ConfigurationError: neither is given, or one is not a number of rounds.

    >>> PeriodicAverage(every=16, first=100)
    PeriodicAverage(every=16, first=100)
    """

    in_step = True

    def __init__(self, every: int | None = None, *, first: int = 0) -> None:
        self.every = None if every is None else count("every", every, 1)
        self.first = count("first", first, 0)
        if self.every is None and self.first == 0:
            raise ConfigurationError("PeriodicAverage: expected every=H or first=K, or both; got neither")

    def due(self, round: int) -> bool:
        """Tell whether a round is an exact average."""
        return round < self.first or (self.every is not None and (round + 1) % self.every == 0)

    def round(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        if self.due(push_sum.round):
            push_sum.average()
        else:
            push_sum.mix()

    def __repr__(self) -> str:
        return f"PeriodicAverage(every={self.every}, first={self.first})"
