"""Writes the metrics of a run whose times are given, through the real listener and the real files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pushsum_opt as ps
from pushsum_opt.observe.metrics.about import FORMAT
from pushsum_opt.observe.metrics.collected import Collected
from pushsum_opt.observe.metrics.sinks import JsonLines

__all__ = ["BEGAN", "RecordedRun"]

BEGAN = 1.75e9
"""When a run begins, in s since 1970."""


class RecordedRun:
    """A run of ``size`` ranks, as its metrics tell of it.

    A rank computes, posts its messages, waits for those that are due, and merges. So a round ends when the last message
    that is due is here, which is what makes ranks wait for each other.

    Args:
        own: seconds of a rank's own work in a round.
        message: seconds that a message takes from one rank to another.
        call: seconds that a rank waits in a collective call after each round.
        host: the name of a rank's host.
        about: what else the first line says, by name.
        row: what else each row says: a function of (rank, round).
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        *,
        own: Callable[[int, int], float] = lambda rank, round: 0.05,
        message: Callable[[int, int], float] = lambda sender, receiver: 0.0002,
        call: float = 0.0,
        staleness: int | str = 0,
        graph: ps.Graph | None = None,
        nbytes: int = 1_000_000,
        every: int = 10,
        host: Callable[[int], str] = lambda rank: f"node{rank // 8}",
        spans: Callable[[int, int], dict[str, float]] = lambda rank, round: {},
        row: Callable[[int, int], dict[str, Any]] = lambda rank, round: {},
        run: str = "0123456789abcdef",
        began: float = BEGAN,
        about: dict[str, Any] | None = None,
    ) -> None:
        self._graph = ps.graphs.default(size) if graph is None else graph
        self._own, self._message, self._call, self._spans, self._row = own, message, call, spans, row
        self._size, self._staleness, self._nbytes, self._every = size, staleness, nbytes, every
        self.round = 0
        self.ranks = list(range(size))
        """The ranks that go on."""
        self.clocks = [0.0] * size
        self._posted: dict[tuple[int, int, int], float] = {}
        self._began = began
        self._files: list[JsonLines] = []
        self.losses: list[ps.Loss] = []
        self.collected: list[Collected] = []
        for rank in range(size):
            facts = self._about(rank, host(rank), run) | (about or {})
            self._files.append(JsonLines(folder, *self._sources(rank, facts)))
            self._files[rank].begin()
            self.collected.append(Collected(rank, lambda: range(size), clock=lambda rank=rank: self.clocks[rank]))

    def go(self, rounds: int) -> RecordedRun:
        """Make so many rounds."""
        for _ in range(rounds):
            for rank in self.ranks:
                self._compute(rank)
            for rank in self.ranks:
                self._merge(rank)
            self.round += 1
        return self

    def lose(self, rank: int, loss: ps.Loss) -> None:
        """A rank dies, and the others notice."""
        self.ranks.remove(rank)
        self.losses.append(loss)

    def end(self, ranks: Iterable[int] | None = None) -> None:
        """Come to the end, on these ranks; None: on all that go on."""
        for rank in list(self.ranks if ranks is None else ranks):
            self._write(rank)
            self._files[rank].close()
            self.ranks.remove(rank)

    def _sources(self, rank: int, facts: dict[str, Any]) -> tuple[Callable[[], Any], ...]:
        return lambda: facts, lambda: self.losses, lambda: self._began + self.clocks[rank]

    def _compute(self, rank: int) -> None:
        heard, round = self.collected[rank], self.round
        own, spans = self._own(rank, round), self._spans(rank, round)
        for name, seconds in spans.items():
            heard.span_begins(name)
            self.clocks[rank] += seconds
            heard.span_ends(name)
        self.clocks[rank] += own - sum(spans.values())
        heard.local_step_begins(round)
        heard.local_step_ends(round)
        heard.round_begins(round)
        for peer in self._graph.out_peers(rank, self._size, round):
            heard.message_posted(round, peer, self._nbytes, 0.5)
            self._posted[rank, peer, round] = self.clocks[rank]

    def _merge(self, rank: int) -> None:
        heard, now = self.collected[rank], self.round
        age = 0 if self._staleness == "unbounded" else int(self._staleness)
        for peer in self._graph.in_peers(rank, self._size, now - age) if now >= age else ():
            if (peer, rank, now - age) not in self._posted:
                continue
            here = self._posted.pop((peer, rank, now - age)) + self._message(peer, rank)
            late = here - self.clocks[rank]
            if late > 0 and self._staleness != "unbounded":
                self.clocks[rank] = here
                heard.wait_ends("step()", peer, now, late)
            heard.message_merged(now, peer, age)
        heard.round_ends(now, 1.0)
        if self._call:
            self.clocks[rank] += self._call
            heard.wait_ends("ps.average()", None, now, self._call)
        if (now + 1) % self._every == 0:
            self._write(rank)

    def _write(self, rank: int) -> None:
        numbers = self.collected[rank]._row()
        for name, value in self._row(rank, self.round).items():
            assert hasattr(numbers, name), f"metrics have no {name}"
            setattr(numbers, name, value)
        self._files[rank].take(numbers)

    def _about(self, rank: int, host: str, run: str) -> dict[str, Any]:
        rounds = range(self._graph.window(self._size))
        return {
            "format": FORMAT,
            "run": run,
            "rank": rank,
            "size": self._size,
            "participant": rank,
            "participants": self._size,
            "host": host,
            "pid": 4000 + rank,
            "began": self._began,
            "every": self._every,
            "program": "train.py",
            "versions": {"python": "3.11.7", "pushsum_opt": ps.__version__, "torch": "2.13.0"},
            "system": "Linux x86_64",
            "threads": "8",
            "optimizer": "SGD",
            "algorithm": "Gossip",
            "gossip_every": 1,
            "within_host": None,
            "graph": repr(self._graph),
            "rounds": [list(self._graph.gives(rank, self._size, k)) for k in rounds],
            "rounds_are_a_period": self._graph.period(self._size) is not None,
            "staleness": self._staleness,
            "data_weight": 1.0,
            "wire_dtype": None,
            "nonfinite": "raise",
            "rate_correction": False,
            "on_loss": "stop",
            "memory": "host",
            "transport": "mpi",
            "bytes_per_round": float(self._nbytes),
        }
