"""What rules of advice look at, and what they return."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..figures import RankFigures, RunFigures, figures_of_run
from ..reading import Run

__all__ = ["SLOW", "Advice", "Evidence"]

SLOW = 1.25
"""A rank is slow where its own work takes so many times the median."""


@dataclass(frozen=True)
class Advice:
    """What to change, and the figure that this rests on."""

    text: str
    saves: float = 0.0
    """The part of a step that it may save; 0: none, or not known."""
    fault: bool = False
    """Something has gone wrong, whatever the speed."""


class Evidence:
    """The figures of a whole run, as rules look at them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.about = run.about

    @cached_property
    def figures(self) -> RunFigures:
        """All rows but the first one of each rank."""
        return figures_of_run(self.run)

    @property
    def step(self) -> float:
        """The median step time, in s."""
        return self.figures.step

    @property
    def synchronous(self) -> bool:
        """Whether messages are merged in the round in which they are sent."""
        return self.figures.staleness == 0

    @property
    def bounded(self) -> bool:
        """Whether a rank ever waits for a message."""
        return self.figures.staleness != "unbounded"

    @cached_property
    def slow(self) -> list[RankFigures]:
        """The ranks whose own work takes much longer than that of the median rank, the slowest first."""
        limit = SLOW * self.figures.own
        found = [one for one in self.figures.ranks if one.own > limit and self.figures.own > 0]
        return sorted(found, key=lambda one: -one.own)

    def part(self, seconds: float) -> float:
        """Return a time as a part of a step."""
        return seconds / self.step if self.step > 0 else 0.0
