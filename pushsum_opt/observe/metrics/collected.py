"""The numbers of one rank, collected from its events."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from ...clock import Clock
from ..events import Listener

__all__ = ["QUANTILES", "Collected", "Numbers"]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
SAMPLES = 1024
"""Step times that are held at most between two rows."""


@dataclass
class Numbers:
    """What one row says. Names with ``total`` count from the beginning; the rest is since the row before."""

    rank: int
    round: int = 0
    push_weight: float = 1.0
    steps_total: int = 0
    sent_bytes_total: int = 0
    chunks_skipped_total: int = 0
    blocks_missed_total: int = 0
    round_seconds_total: float = 0.0
    """Seconds inside rounds: giving, waiting, merging."""
    local_step_seconds_total: float = 0.0
    """Seconds inside the steps of the wrapped optimizer."""
    step_seconds: dict[str, float] = field(default_factory=dict)
    """Quantiles, "mean", "min" and "max" of the time from the end of one round to that of the next."""
    round_wait_seconds: dict[str, float] = field(default_factory=dict)
    """The same of the time that a round waits, of rounds with a message to merge."""
    wait_seconds_total: dict[str, float] = field(default_factory=dict)
    """By the rank waited for; "all": in collective calls."""
    message_age: dict[str, float] = field(default_factory=dict)
    """"mean" and "max" of the ages of merged messages, in rounds."""
    moved: dict[str, float] = field(default_factory=dict)
    """How far ("distance") this rank's model has moved in the last "rounds", about 1000; see :class:`~.moved.Moved`."""
    span_seconds_total: dict[str, float] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    """The means of what the user logged."""
    means: dict[str, float] = field(default_factory=dict)
    """Over ranks, some rounds old: what all ranks report, how far their models are apart, and what mass they hold."""

    def flat(self) -> dict[str, float]:
        """Return every number but rank and round under a name of its own, parts of a name divided by "/"."""
        found: dict[str, float] = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                found |= {(part if name == "logged" else f"{name}/{part}"): one for part, one in value.items()}
            elif name not in ("rank", "round"):
                found[name] = value
        return found


class Collected(Listener):
    """Collects numbers, and hands out a row of them when asked."""

    def __init__(self, rank: int, peers: Any, clock: Clock) -> None:
        self._clock = clock
        self._peers = peers
        self._numbers = Numbers(rank)
        self._ended: float | None = None
        self._round_began: float | None = None
        self._step_began: float | None = None
        self._waited_in_round = 0.0
        self._merges = False
        self._round_waits: list[float] = []
        self._steps: list[float] = []
        self._ages: list[int] = []
        self._waits: dict[str, float] = defaultdict(float)
        self._spans: dict[str, float] = defaultdict(float)
        self._open_spans: dict[tuple[int, str], list[float]] = defaultdict(list)
        self._logged: dict[str, tuple[float, int]] = {}

    def _add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            total, count = self._logged.get(name, (0.0, 0))
            self._logged[name] = (total + value, count + 1)

    def _row(self) -> Numbers:
        """Return the numbers so far, and begin the next row."""
        numbers = self._numbers
        numbers.step_seconds = _spread(self._steps)
        numbers.round_wait_seconds = _spread(self._round_waits)
        numbers.message_age = {} if not self._ages else {"mean": _mean(self._ages), "max": float(max(self._ages))}
        numbers.wait_seconds_total, numbers.span_seconds_total = dict(self._waits), dict(self._spans)
        numbers.logged = {name: total / count for name, (total, count) in self._logged.items()}
        self._steps, self._ages, self._round_waits, self._logged = [], [], [], {}
        return numbers

    # ------------------------------------------------------------------ events

    def local_step_begins(self, round: int) -> None:
        self._step_began = self._clock()

    def local_step_ends(self, round: int) -> None:
        if self._step_began is not None:  # otherwise it began before this listened
            self._numbers.local_step_seconds_total += self._clock() - self._step_began
            self._step_began = None

    def round_begins(self, round: int) -> None:
        self._round_began = self._clock()

    def round_ends(self, round: int, push_weight: float) -> None:
        now = self._clock()
        if self._round_began is not None:
            self._numbers.round_seconds_total += now - self._round_began
            self._round_began = None
        if self._ended is not None and len(self._steps) < SAMPLES:
            self._steps.append(now - self._ended)
            if self._merges or self._waited_in_round:
                self._round_waits.append(self._waited_in_round)
        self._ended, self._waited_in_round, self._merges = now, 0.0, False
        numbers = self._numbers
        numbers.round, numbers.push_weight = round, float(push_weight)
        numbers.steps_total += 1

    def message_posted(self, round: int, peer: int, nbytes: int, mass: float) -> None:
        self._numbers.sent_bytes_total += nbytes

    def message_merged(self, round: int, peer: int, age: int) -> None:
        self._merges = True
        if len(self._ages) < SAMPLES:
            self._ages.append(max(0, age))

    def chunk_skipped(self, round: int, peer: int, what: str) -> None:
        self._numbers.chunks_skipped_total += 1

    def blocks_missed(self, round: int, peer: int, count: int) -> None:
        self._numbers.blocks_missed_total += count

    def wait_ends(self, call: str, peer: int | None, round: int, seconds: float) -> None:
        self._waits["all" if peer is None else str(self._peers()[peer])] += seconds
        if peer is not None:
            self._waited_in_round += seconds

    def span_begins(self, name: str) -> None:
        self._open_spans[threading.get_ident(), name].append(self._clock())

    def span_ends(self, name: str) -> None:
        begun = self._open_spans[threading.get_ident(), name]
        if begun:  # otherwise it began before this listened
            seconds = self._clock() - begun.pop()
            self._spans[name] += seconds  # nothing in between: another thread may leave a span of this name too


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    found = {name: ordered[min(len(ordered) - 1, int(part * len(ordered)))] for name, part in QUANTILES.items()}
    return {"mean": _mean(values), "min": ordered[0], **found, "max": ordered[-1]}


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))
