"""Puts the clocks of ranks together, from the moments at which they came to and left common barriers.

No rank leaves a barrier before all have come: a barrier is a round trip between every two ranks. So if rank q came at
e_q and left at x_q, and rank r came at e_r and left at x_r, each by its own clock, then (clock of r) - (clock of q)
lies between e_r - x_q and x_r - e_q. Many barriers at the start of a run, and again at the end, make that interval
narrow; in between the offset is a line.
"""

from __future__ import annotations

from dataclasses import dataclass

from .reading import Recording

__all__ = ["UNSEEN_DRIFT", "ClockLine", "compare_clocks"]

UNSEEN_DRIFT = 1e-4
"""How far a clock may drift, at most, in s per s, where it was compared only once: quartz does not drift more."""

UNKNOWN_NS = 1e18
"""The error where a clock was never compared: 30 years."""


@dataclass(frozen=True)
class ClockLine:
    """How one rank's clock relates to that of the reference. Times are in ns."""

    offset: float
    """(Its clock) - (the reference's), at ``at``."""

    drift: float
    """By how much the offset grows in each ns."""

    at: float
    """The first comparison, on its own clock."""

    until: float
    """The last comparison, on its own clock."""

    error: float
    """The most by which the offset is wrong from ``at`` to ``until``."""

    growth: float
    """By how much that error grows in each ns outside."""

    def corrected(self, time: float) -> float:
        """Return a moment of its clock on the reference's."""
        return time - self.offset - self.drift * (time - self.at)

    def error_at(self, time: float) -> float:
        """Return the most by which :meth:`corrected` is wrong, if clocks drift evenly."""
        return self.error + self.growth * max(0.0, self.at - time, time - self.until)


def compare_clocks(recordings: list[Recording]) -> dict[int, ClockLine]:
    """Return the line of each rank's clock. The reference is the lowest rank that was compared most often."""
    reference = min(recordings, key=lambda one: (-len(one.meetings), one.rank))
    return {one.rank: _line(one, reference) for one in recordings}


def _line(one: Recording, reference: Recording) -> ClockLine:
    name = one.described["clock"]
    if one is reference or (name and name == reference.described["clock"]):
        return ClockLine(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    common = [
        _Common(mine["met"], theirs["met"])
        for mine, theirs in zip(one.meetings, reference.meetings, strict=False)
        if mine["ranks"] == theirs["ranks"]
    ]
    if not common:
        return ClockLine(0.0, 0.0, 0.0, 0.0, UNKNOWN_NS, 0.0)
    first, last = common[0], common[-1]
    if len(common) == 1:
        offset, error = first.offset(0.0)
        return ClockLine(offset, 0.0, first.at, first.at, error + UNSEEN_DRIFT * first.length, UNSEEN_DRIFT)
    span = last.at - first.at
    drift = (last.narrowest() - first.narrowest()) / span
    begin, error_then = first.offset(drift)  # a drift that is nearly right makes all barriers of a meeting comparable
    end, error_now = last.offset(drift)
    drift_error = (error_then + error_now) / span
    error = max(error_then, error_now) + drift_error * max(first.length, last.length)
    return ClockLine(begin, (end - begin) / span, first.at, last.at, error, drift_error)


class _Common:
    """Barriers at which two ranks met, one soon after the other."""

    def __init__(self, mine: list[list[int]], theirs: list[list[int]]) -> None:
        pairs = list(zip(mine, theirs, strict=True))
        middles = [(begin + end) / 2 for begin, end in mine]
        self.at = middles[len(middles) // 2]
        self.length = middles[-1] - middles[0]
        self._intervals = [
            (middle - self.at, my_begin - their_end, my_end - their_begin)
            for middle, ((my_begin, my_end), (their_begin, their_end)) in zip(middles, pairs, strict=True)
        ]

    def narrowest(self) -> float:
        """Return the offset as the quickest barrier alone gives it."""
        _, low, high = min(self._intervals, key=lambda one: one[2] - one[1])
        return (low + high) / 2

    def offset(self, drift: float) -> tuple[float, float]:
        """Return the offset at ``at`` and its error: all intervals hold it, after the drift is taken out of them."""
        low = max(low - drift * since for since, low, _ in self._intervals)
        high = min(high - drift * since for since, _, high in self._intervals)
        return (low + high) / 2, abs(high - low) / 2
