"""One rank's events as a trace shows them: slices on its threads, counters, and arrows to and from other ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .reading import Recording

__all__ = ["Messages", "Tracks"]

BEGINS = {"L": "l", "R": "r", "C": "c", "W": "w", "S": "s"}
ENDS = {end: begin for begin, end in BEGINS.items()}


@dataclass
class _Open:
    kind: str
    name: str
    begin: float
    about: dict[str, Any]


class Messages:
    """Where each message was posted and merged, by (from, to, round)."""

    def __init__(self) -> None:
        self._posted: dict[tuple[int, int, int], tuple[float, int]] = {}
        self._merged: dict[tuple[int, int, int], tuple[float, int]] = {}
        self.matched = 0
        """Arrows made so far."""
        self.backwards = 0.0
        """By how many microseconds an arrow points backwards, at most."""

    def posted(self, sender: int, receiver: int, round: int, time: float, thread: int) -> None:
        self._posted.setdefault((sender, receiver, round), (time, thread))

    def merged(self, sender: int, receiver: int, round: int, time: float, thread: int) -> None:
        self._merged.setdefault((sender, receiver, round), (time, thread))

    def arrows(self) -> Iterator[dict[str, Any]]:
        """Make an arrow for each message of which both ends were written."""
        for key, (begin, thread) in self._posted.items():
            if key not in self._merged:
                continue
            sender, receiver, round = key
            end, there = self._merged[key]
            self.matched += 1
            self.backwards = max(self.backwards, begin - end)
            common = {"cat": "message", "name": f"message of round {round}", "id": self.matched}
            yield {"ph": "s", "pid": sender, "tid": thread, "ts": begin, **common}
            yield {"ph": "f", "bp": "e", "pid": receiver, "tid": there, "ts": end, **common}


class Tracks:
    """Turns the events of one rank into events of a trace.

    Args:
        time: gives a moment of the rank's clock in microseconds since the beginning of the trace.
    """

    def __init__(self, rank: int, time: Callable[[int], float], messages: Messages) -> None:
        self._rank, self._time, self._messages = rank, time, messages
        self._open: dict[int, list[_Open]] = {}
        self._before: dict[int, float] = {}
        self._round_ended: float | None = None
        self._bytes = 0

    def events(self, recording: Recording) -> Iterator[dict[str, Any]]:
        """Go through a recording. What had not ended when its rank did ends with its last event."""
        now = 0.0
        for moment, kind, thread, *rest in recording.events():
            now = self._time(moment)
            yield from self._one(kind, thread, now, rest)
            self._before[thread] = now
        for thread, stack in self._open.items():
            while stack:
                yield self._slice(thread, stack.pop(), now, unfinished=True)

    def _one(self, kind: str, thread: int, now: float, rest: list[Any]) -> Iterator[dict[str, Any]]:
        if kind in BEGINS:
            self._open.setdefault(thread, []).append(_opened(kind, now, rest))
        elif kind in ENDS:
            if kind == "w":
                self._name_wait(thread, rest)
            yield from self._ended(ENDS[kind], thread, now)
            if kind == "r":
                yield from self._counters(now, rest[1])
        elif kind == "v":
            known = {name: value for name, value in rest[0].items() if math.isfinite(value)}
            yield from (self._counter(now, name, "over ranks", value) for name, value in known.items())
        elif kind == "p":
            yield self._posted(thread, now, *rest)
        elif kind == "m":
            yield self._merged(thread, now, *rest)
        elif kind == "a":
            yield self._mark(thread, now, f"message from {rest[1]} is here", {"round": rest[0], "age": rest[2]})
        elif kind == "k":
            yield self._mark(thread, now, f"{rest[2]} from {rest[1]} skipped: not finite", {"round": rest[0]})
        elif kind == "b":
            yield self._mark(thread, now, f"{rest[2]} blocks from {rest[1]} missed", {"round": rest[0]})
        elif kind == "!":
            yield self._mark(thread, now, rest[0], {})

    def _name_wait(self, thread: int, rest: list[Any]) -> None:
        """Only the end of a wait says which of several peers it was for."""
        wait = next((one for one in reversed(self._open.get(thread, [])) if one.kind == "W"), None)
        if wait is not None:
            wait.name = _wait_name(rest[1])

    def _ended(self, kind: str, thread: int, now: float) -> Iterator[dict[str, Any]]:
        """End the innermost slice of a kind, and with it what was begun inside and left by an error."""
        stack = self._open.get(thread, [])
        if any(one.kind == kind for one in stack):  # otherwise it began before what is still in the file
            while stack[-1].kind != kind:
                yield self._slice(thread, stack.pop(), now, unfinished=True)
            yield self._slice(thread, stack.pop(), now)

    def _posted(self, thread: int, now: float, round: int, peer: int, nbytes: int, mass: float) -> dict[str, Any]:
        # The event says that the transport has the message. It cannot have moved before the event in front of that.
        begin = self._before.get(thread, now)
        self._bytes += nbytes
        self._messages.posted(self._rank, peer, round, begin, thread)
        about = {"round": round, "bytes": nbytes, "mass": mass}
        return self._slice(thread, _Open("p", f"post to {peer}", begin, about), now)

    def _merged(self, thread: int, now: float, round: int, peer: int, age: int) -> dict[str, Any]:
        self._messages.merged(peer, self._rank, round - age, now, thread)
        begin = self._before.get(thread, now)
        return self._slice(thread, _Open("m", f"merge from {peer}", begin, {"round": round, "age": age}), now)

    def _slice(self, thread: int, one: _Open, end: float, unfinished: bool = False) -> dict[str, Any]:
        about = {**one.about, "unfinished": True} if unfinished else one.about
        return {
            "ph": "X",
            "pid": self._rank,
            "tid": thread,
            "ts": one.begin,
            "dur": round(end - one.begin, 3),
            "name": one.name,
            "cat": CATEGORIES[one.kind],
            "args": about,
        }

    def _mark(self, thread: int, now: float, name: str, about: dict[str, Any]) -> dict[str, Any]:
        return {"ph": "i", "s": "t", "pid": self._rank, "tid": thread, "ts": now, "name": name, "args": about}

    def _counters(self, now: float, push_weight: float) -> Iterator[dict[str, Any]]:
        yield self._counter(now, "push weight", "w", push_weight)
        if self._round_ended is not None and now > self._round_ended:
            per_second = round(self._bytes / (now - self._round_ended) * 1e6)
            yield self._counter(now, "bytes sent", "per second", per_second)
        self._round_ended, self._bytes = now, 0

    def _counter(self, now: float, name: str, series: str, value: float) -> dict[str, Any]:
        # Perfetto shows a counter under its name and its series, as one text.
        return {"ph": "C", "pid": self._rank, "ts": now, "name": name, "args": {series: value}}


CATEGORIES = {
    "L": "step", "R": "round", "C": "call", "W": "wait", "S": "span", "p": "message", "m": "message",
}  # fmt: skip


def _opened(kind: str, now: float, rest: list[Any]) -> _Open:
    if kind == "S":
        return _Open(kind, rest[0], now, {})
    about = {"round": rest[0]}
    if kind == "L":
        return _Open(kind, "local step", now, about)
    if kind == "R":
        return _Open(kind, f"round {rest[0]}", now, about)
    if kind == "C":
        return _Open(kind, rest[1], now, about)
    return _Open(kind, _wait_name(rest[1]), now, {**about, "call": rest[2]})


def _wait_name(peer: int | None) -> str:
    return "wait" if peer is None else f"wait for {peer}"
