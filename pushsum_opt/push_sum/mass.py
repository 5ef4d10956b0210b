"""The mass of one rank, as a value: what a round returns is a new one."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Mass"]

EXACT = 1e-12
"""|w / a - 1| up to which w counts as a."""


@dataclass(frozen=True, slots=True)
class Mass:
    """Push weight, initial weight and round of one rank (w, a and k).

    It does not change: a round that fails half-way leaves the mass that was there before.

    >>> mass = Mass.begin(1.0).after_round(0.5)
    >>> mass.round, mass.step_factor()
    (1, 2.0)
    """

    weight: float
    """w > 0: the mass that this rank holds. Over all ranks, with what is in flight, it sums to n."""

    initial: float
    """a_i = n v_i / sum v: the mass with which this rank began."""

    round: int = 0
    """k: the number of rounds completed."""

    @classmethod
    def begin(cls, initial: float) -> Mass:
        """Return the mass before the first round."""
        return cls(initial, initial)

    def with_weight(self, weight: float) -> Mass:
        """Return the same round with another push weight."""
        return replace(self, weight=weight)

    def after_round(self, weight: float) -> Mass:
        """Return the mass after one more round, which left this push weight."""
        return replace(self, weight=weight, round=self.round + 1)

    def restarted(self, round: int) -> Mass:
        """Return w = a in a round."""
        return Mass(self.initial, self.initial, round)

    def step_factor(self, scale: float = 1.0) -> float:
        """Return what a local step dz must be multiplied by so that x = w z moves by a dz: scale times a / w.

        Exactly 1 where that is all but 1.

        >>> Mass(0.5 + 1e-16, 0.5).step_factor()
        1.0
        """
        factor = self.initial * scale / self.weight
        return 1.0 if abs(factor - 1.0) < EXACT else factor

    def is_initial(self, weight: float) -> bool:
        """Tell whether a push weight is the one with which this rank began."""
        return abs(weight / self.initial - 1.0) < EXACT
