"""Reads the JSON lines of all ranks, from where the last look ended: a run that goes on is read again and again."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError
from ..bounded_file import OLDER
from ..metrics.about import FORMAT

__all__ = ["Folder", "RankLog", "Row", "Run", "recorded"]

PATTERN = "metrics-*.jsonl"
ROWS_HELD = 16384
"""So many rows of all ranks are held, about: of a long run every second, fourth, ... row."""
FEWEST_ROWS = 64
"""So many rows of each rank are held at least."""


Row = dict[str, Any]
"""A line with the numbers of a rank."""


@dataclass
class RankLog:
    """What one rank has written so far."""

    path: Path
    about: dict[str, Any]
    """What ran, as its first line says."""
    rows: list[Row] = field(default_factory=list)
    """Oldest first. Where there were too many, every second one was dropped; the last one is always there."""
    losses: list[dict[str, Any]] = field(default_factory=list)
    """Losses of other ranks that it has noticed."""
    ended: float | None = None
    """When it came to its end, in s since 1970; None: it goes on, or was killed."""
    worst_step: float = 0.0
    """The longest step of all rows, in s, also of those that were dropped."""

    @property
    def rank(self) -> int:
        """Its number when the job was started."""
        rank: int = self.about["rank"]
        return rank

    @property
    def seen(self) -> float:
        """When it last wrote, in s since 1970."""
        last = self.rows[-1]["time"] if self.rows else self.about["began"]
        return float(last if self.ended is None else max(last, self.ended))

    def take(self, line: dict[str, Any], most: int) -> None:
        """Take in one line of its file."""
        if "step_seconds" in line:
            self.worst_step = max(self.worst_step, line["step_seconds"].get("max", 0.0))
            self.rows.append(line)
            if len(self.rows) > 2 * most:
                self.rows = [*self.rows[1:-1:2], self.rows[-1]]
        elif "loss" in line:
            _add_loss(self.losses, line["loss"])
        elif "ended" in line:
            self.ended = float(line["ended"])


class Run:
    """What all ranks of one run have written so far."""

    def __init__(self, name: str, logs: Collection[RankLog]) -> None:
        self.name = name
        latest = {log.rank: log for log in sorted(logs, key=lambda log: log.about["began"])}
        self.ranks = dict(sorted(latest.items()))
        """By rank; where a spare has taken the place of a rank, what the spare has written."""
        self._logs = logs

    @property
    def about(self) -> dict[str, Any]:
        """What ran, as its lowest rank says."""
        return next(iter(self.ranks.values())).about

    @property
    def size(self) -> int:
        """The number of ranks that were started."""
        size: int = self.about["size"]
        return size

    @property
    def began(self) -> float:
        """When its first rank began, in s since 1970."""
        return min(float(one.about["began"]) for one in self._logs)

    @property
    def seen(self) -> float:
        """When any rank last wrote, in s since 1970."""
        return max(one.seen for one in self.ranks.values())

    @property
    def losses(self) -> list[dict[str, Any]]:
        """Losses of ranks, oldest first, each once."""
        found: list[dict[str, Any]] = []
        for log in self._logs:
            for loss in log.losses:
                _add_loss(found, loss)
        return sorted(found, key=lambda loss: float(loss["time"]))

    @property
    def lost(self) -> set[int]:
        """The ranks that were lost and not replaced."""
        return {rank for loss in self.losses for rank in loss["ranks"] if rank not in loss["replaced"]}

    @property
    def missing(self) -> list[int]:
        """The ranks of which there is no file."""
        return sorted(set(range(self.size)) - self.ranks.keys())

    def ended(self) -> bool:
        """Return whether every rank has come to its end, or was lost."""
        return not self.missing and all(one.ended or one.rank in self.lost for one in self.ranks.values())


class Folder:
    """A folder of metrics, read incrementally: each look takes in the lines that came since.

    Args:
        run: only this run; None: the newest one, by when its ranks began. Once it is chosen, it stays.

    Raises:
        ConfigurationError: the folder holds no metrics, or not those of this run.
    """

    def __init__(self, directory: Path, run: str | None = None) -> None:
        self._directory = directory
        self._wanted = run
        self._logs: dict[Path, RankLog] = {}
        self._places: dict[Path, tuple[int, int]] = {}
        self._headless: set[Path] = set()
        found = self._find()
        newer = {log.about["format"] for logs in found.values() for log in logs if log.about["format"] > FORMAT}
        if newer:
            raise ConfigurationError(
                f"{directory}: metrics of format {max(newer)}: a newer pushsum_opt wrote them, and this one knows "
                f"formats up to {FORMAT}. Read them with that one"
            )
        if not found:
            where = f" of run {run}" if run is not None else ""
            old = f" (in {len(self._headless)} files the first line does not say what ran)" if self._headless else ""
            raise ConfigurationError(
                f"{directory}: no metrics{where} are there{old}: expected files {PATTERN}. Write them with "
                f"ps.observe.Metrics(optimizer, jsonl={str(directory)!r})"
            )
        began = {name: max(log.about["began"] for log in logs) for name, logs in found.items()}
        self._wanted, *older = sorted(began, key=lambda name: -began[name])
        self.others: list[str] = older
        """Names of older runs in the folder, newest first."""
        self._logs = {log.path: log for log in found[self._wanted]}

    def look(self) -> Run:
        """Return the run with all that was written until now."""
        for logs in self._find(known=self._logs).values():
            self._logs |= {log.path: log for log in logs}
        most = max(FEWEST_ROWS, ROWS_HELD // max(1, len(self._logs)))
        for log in self._logs.values():
            for line in self._new_lines(log.path):
                log.take(line, most)
        assert self._wanted is not None
        return Run(self._wanted, list(self._logs.values()))

    def _find(self, known: dict[Path, RankLog] | None = None) -> dict[str, list[RankLog]]:
        """Return the logs of files that are not known, by run; of one run, where that is chosen."""
        found: dict[str, list[RankLog]] = {}
        pattern = PATTERN if self._wanted is None else f"metrics-{self._wanted}-*.jsonl"
        for path in sorted(self._directory.glob(pattern)):
            if path.name.endswith(OLDER) or path in (known or {}):
                continue
            about = _first_line(path)
            if about is None:
                self._headless.add(path)
            else:
                found.setdefault(about["run"], []).append(RankLog(path, about))
        return found

    def _new_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        """Read the lines that are complete and were not read before, also where the file was put aside meanwhile."""
        older = path.with_suffix(OLDER)
        place = self._places.get(path)
        try:
            with path.open("rb") as file:
                number = os.fstat(file.fileno()).st_ino
                if place is None or place[0] != number:
                    yield from self._rest_of(older, place)
                    place = (number, 0)
                file.seek(place[1])
                lines, end = _complete(file.read())
                self._places[path] = (number, place[1] + end)
        except OSError:
            return  # it is being put aside at this moment: the next look finds it
        yield from lines

    def _rest_of(self, older: Path, place: tuple[int, int] | None) -> Iterator[dict[str, Any]]:
        try:
            with older.open("rb") as file:
                if place is not None and os.fstat(file.fileno()).st_ino == place[0]:
                    file.seek(place[1])
                yield from _complete(file.read())[0]
        except OSError:
            return


def _add_loss(losses: list[dict[str, Any]], loss: dict[str, Any]) -> None:
    """Add a loss to others, or to what is known of it: its ranks may have been replaced since."""
    for index, known in enumerate(losses):
        if (known["round"], known["ranks"]) == (loss["round"], loss["ranks"]):
            more = max(known, loss, key=lambda one: len(one["replaced"]))
            losses[index] = {**more, "time": min(known["time"], loss["time"])}
            return
    losses.append(loss)


def recorded(row: Row, name: str) -> float | None:
    """Return a number of a row, whether the library knows it, it is a mean over ranks, or the program logs it."""
    for place in (row, row.get("means") or {}, row["logged"]):
        value = place.get(name)
        if isinstance(value, int | float):
            return float(value)
    return None


def _first_line(path: Path) -> dict[str, Any] | None:
    """Return what ran, as a file's first line says; None where that is not written yet."""
    try:
        with path.open("rb") as file:
            lines, _ = _complete(file.readline())
    except OSError:
        return None
    about = lines[0].get("about") if lines else None
    return about if isinstance(about, dict) else None


def _complete(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the lines that can be read, and where the last complete one ends: a kill may tear a line."""
    end = data.rfind(b"\n") + 1
    found = []
    for line in data[:end].splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found, end
