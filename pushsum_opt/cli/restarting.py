"""``pushsum run --restarts N``: start a job again that has died, on the hosts that still answer."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import progress
from ..exit_codes import INTERRUPTED, REQUEUE
from .answering import agent_of, answering
from .host_list import hosts_of
from .supervise import Ended

__all__ = ["Attempt", "keep_running"]

WELL = (0, REQUEUE, INTERRUPTED)
"""Exit codes after which nothing is started again: finished, saved and to be requeued, interrupted."""
IDLE = 2
"""So many attempts in a row that have saved nothing new are the end."""
LONG_S = 300.0
"""Where ranks say nothing of what they save, an attempt of so many seconds counts as progress."""

Start = Callable[[Sequence[str], Mapping[str, str]], Ended]


@dataclass(frozen=True)
class Attempt:
    """One start of the job, after its end."""

    ended: Ended
    seconds: float
    saved: int | None = None
    """The last round that it saved, on disk or in memory, as far as its ranks on this host say."""

    unfinished: int = 0
    """How many ranks on this host have begun and not ended well."""

    @property
    def code(self) -> int:
        """The exit code; that of an error where 0 is wrong: Open MPI's mpirun ends with 0 when it has lost a host."""
        return 1 if self.ended.code == 0 and self.unfinished else self.ended.code

    def is_progress(self, before: Attempt | None) -> bool:
        """Tell whether it saved a newer round than the attempt before it."""
        if self.saved is None:
            return self.seconds >= LONG_S and (before is None or before.saved is None)
        return before is None or before.saved is None or self.saved > before.saved

    def __str__(self) -> str:
        saved = "" if self.saved is None else f", round {self.saved} saved"
        early = ", before its ranks had ended" if self.code != self.ended.code else ""
        return f"the job ended with exit code {self.ended.code} after {self.seconds:.0f} s{early}{saved}"


def keep_running(
    start: Start, options: Sequence[str], environ: Mapping[str, str], most: int, *, survivors: bool = False
) -> int:
    """Start the job, and again up to ``most`` times as long as it dies; return its last exit code.

    Args:
        start: starts it with some of mpirun's options and an environment, and waits for its end.
        survivors: the job goes on without ranks that die.
    """
    with tempfile.TemporaryDirectory(prefix="pushsum-run-") as name:
        folder = Path(name)
        notes = folder / "progress"
        notes.mkdir()
        before: Attempt | None = None
        now, count, idle = list(options), 0, 0
        while True:
            variables = {"PUSHSUM_RESTARTS": str(count), "PUSHSUM_PROGRESS": str(notes)}
            attempt = _try(start, now, {**environ, **variables}, notes, survivors)
            if attempt.ended.asked or attempt.code in WELL:
                return attempt.code
            idle = 0 if attempt.is_progress(before) else idle + 1
            before = attempt
            if count == most:
                return _give_up(attempt, f"all {most} restarts are used up")
            if idle == IDLE:
                return _give_up(attempt, f"{IDLE} attempts in a row have saved nothing new")
            try:
                left = _on_what_answers(options, environ, folder)  # of all: a host may be back
            except KeyboardInterrupt:
                return INTERRUPTED
            if left is None:
                return _give_up(attempt, "no host answers")
            now, told = left
            count += 1
            _say(f"{attempt}; started again ({count} of {most}){told}")


def _try(start: Start, options: Sequence[str], environ: Mapping[str, str], notes: Path, survivors: bool) -> Attempt:
    for note in notes.iterdir():
        note.unlink()
    begin = time.monotonic()
    ended = start(options, environ)
    seconds = time.monotonic() - begin
    unfinished = len(list(notes.glob("*.begun"))) or len(progress.without_end(notes, survivors=survivors))
    return Attempt(ended, seconds, _saved(notes), unfinished)


def _saved(notes: Path) -> int | None:
    """Return the newest round that all ranks on this host have noted."""
    texts = [note.read_text(encoding="utf-8").strip() for note in notes.glob("*.saved")]
    return min((int(text) for text in texts if text.isdecimal()), default=None)


def _on_what_answers(options: Sequence[str], environ: Mapping[str, str], folder: Path) -> tuple[list[str], str] | None:
    """Return the options for the hosts that answer, and what to say of it; None where none does."""
    hosts = hosts_of(options)
    if hosts is None:
        return list(options), ""
    names = answering(list(hosts.slots), agent_of(options, environ), environ)
    if not names:
        return None
    lost = [name for name in hosts.slots if name not in names]
    if not lost:
        return list(options), ""
    ranks = hosts.capacity(names)
    told = "" if ranks is None else f" with {ranks} of {hosts.ranks} ranks"
    verb = "do" if len(lost) > 1 else "does"
    return hosts.keep(options, names, folder), f"{told}, as {', '.join(lost)} {verb} not answer"


def _give_up(attempt: Attempt, why: str) -> int:
    _say(f"{attempt}; not started again: {why}")
    return attempt.code


def _say(line: str) -> None:
    print(f"pushsum run: {line}", file=sys.stderr, flush=True)
