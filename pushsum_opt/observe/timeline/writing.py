"""Timeline: a listener that writes every event of its rank to a file."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from ...clock import Clock, monotonic
from ...errors import ConfigurationError
from ...job import world
from ..bounded_file import BoundedFile, file_name
from ..events import Listener

__all__ = ["FORMAT", "Timeline"]

FORMAT = 1
COMPARISONS = 24
"""Barriers at the start and at the end, by which the clocks of the ranks are compared."""
LONG_WAIT_S = 0.1
"""After such a wait the file is written: compared with it, that costs nothing."""
LEAST_LIMIT = 64 << 10
LAST_CALL = "close()"
"""The call that ends an optimizer: it merges what is in flight after the clocks were compared."""


class Timeline(Listener):
    """Collective. Writes what this rank does to a file; ``pushsum timeline`` makes one trace of all ranks' files.

    Steps, rounds, messages, waits, collective calls, :func:`spans <span>` and means are written, each with its time.
    The file holds everything up to the last round, however the process ends. Where it would grow beyond ``limit``
    bytes, the oldest events are dropped. All ranks compare their clocks now and when the optimizer is closed.

    ``PUSHSUM_TIMELINE=DIR`` makes one for every optimizer, without a change of the program.

    Args:
        optimizer: a :class:`~pushsum_opt.PushSumOptimizer` or a :class:`~pushsum_opt.PushSum`.
        directory: where the files of all ranks are written; it is made if it is not there.
        rounds: write rounds ``rounds[0] <= k < rounds[1]`` only; None: all of them.
        limit: the most bytes that this rank's files take, at least 64 KiB.
        means: whether to write what :meth:`PushSum.means` returns, where it has changed. All ranks measure the
            consensus distance then; :class:`Metrics` says what that takes.
        clock: returns this rank's seconds; None: the clock of the machine that only grows.

    Raises:
        ConfigurationError: ``rounds`` or ``limit`` has a value that cannot be used.
    """

    def __init__(
        self,
        optimizer: Any,
        directory: str | os.PathLike[str],
        *,
        rounds: tuple[int, int] | None = None,
        limit: int = 64 << 20,
        means: bool = True,
        clock: Clock | None = None,
    ) -> None:
        push_sum = getattr(optimizer, "push_sum", optimizer)
        check(push_sum.rank, rounds, limit)
        self._push_sum = push_sum
        self._clock = push_sum.transport.clock if clock is None else clock
        self._rank = push_sum.members[push_sum.rank]
        self._rounds = rounds
        self._head = _line(self._described(push_sum.member.name))
        self._threads: dict[int, int] = {}
        self._closed = False
        self._on = False
        self._file = BoundedFile(
            Path(directory) / file_name("timeline", push_sum.member.name, self._rank),
            limit,
            self._rank,
            lambda: self._head,
        )
        self._compare_clocks("ps.observe.Timeline()")
        self._read_means = push_sum.means if means else dict
        self._means = json.dumps(self._read_means())  # from now on all ranks measure what it has
        self._round_may_begin(push_sum.round)
        push_sum.subscribe(self)
        push_sum.member.before_close.append(self._last_comparison)

    def close(self) -> None:
        """Collective. Compare the clocks again and end the file; closing the optimizer does it too. Idempotent."""
        self._last_comparison()
        self._end_file()

    def _last_comparison(self) -> None:
        if not self._closed:
            self._closed = True
            self._compare_clocks("Timeline.close()")

    def _end_file(self) -> None:
        self._on = False
        self._file.close()
        self._push_sum.unsubscribe(self)

    def _described(self, run: str) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "run": run,
            "rank": self._rank,
            "size": self._push_sum.size,
            "host": world.hostname(),
            "pid": os.getpid(),
            "began": time.time(),
            "clock": _name_of_clock() if self._clock is monotonic else "",
        }

    def _compare_clocks(self, call: str) -> None:
        """Collective. Note when this rank came to and left barriers: no rank leaves one before all have come."""
        moments = self._push_sum.member.place.meetings(call, COMPARISONS, self._clock)
        met = {
            "met": [[int(begin * 1e9), int(end * 1e9)] for begin, end in moments],
            "ranks": list(self._push_sum.members),
        }
        self._head += _line(met)
        self._file.append(_line(met))
        self._file.flush()

    # ------------------------------------------------------------------ lines

    def _write(self, kind: str, rest: str) -> None:
        if self._on:
            self._file.append(f'[{int(self._clock() * 1e9)},"{kind}",{self._thread()}{rest}]\n')

    def _thread(self) -> int:
        ident = threading.get_ident()
        number = self._threads.get(ident)
        if number is None:
            number = self._threads[ident] = len(self._threads)
            named = _line({"thread": number, "name": threading.current_thread().name})
            self._head += named
            self._file.append(named)
        return number

    def _peer(self, peer: int | None) -> int | str:
        """Return a peer by its number when the job was started."""
        return "null" if peer is None else self._push_sum.members[peer]

    def _round_may_begin(self, round: int) -> None:
        self._on = self._rounds is None or self._rounds[0] <= round < self._rounds[1]

    # ------------------------------------------------------------------ events

    def local_step_begins(self, round: int) -> None:
        self._round_may_begin(round)
        self._write("L", f",{round}")

    def local_step_ends(self, round: int) -> None:
        self._write("l", f",{round}")

    def round_begins(self, round: int) -> None:
        self._round_may_begin(round)
        self._write("R", f",{round}")

    def message_posted(self, round: int, peer: int, nbytes: int, mass: float) -> None:
        self._write("p", f",{round},{self._peer(peer)},{nbytes},{mass!r}")

    def message_arrived(self, round: int, peer: int, age: int) -> None:
        self._write("a", f",{round},{self._peer(peer)},{age}")

    def message_merged(self, round: int, peer: int, age: int) -> None:
        self._write("m", f",{round},{self._peer(peer)},{age}")

    def chunk_skipped(self, round: int, peer: int, what: str) -> None:
        self._write("k", f",{round},{self._peer(peer)},{json.dumps(what)}")

    def blocks_missed(self, round: int, peer: int, count: int) -> None:
        self._write("b", f",{round},{self._peer(peer)},{count}")

    def round_ends(self, round: int, push_weight: float) -> None:
        self._write("r", f",{round},{float(push_weight)!r}")
        if self._on and (means := json.dumps(self._read_means())) != self._means:
            self._means = means
            self._write("v", f",{means}")
        self._file.flush()
        self._round_may_begin(round + 1)

    def call_begins(self, call: str, round: int) -> None:
        self._write("C", f",{round},{json.dumps(call)}")
        self._file.flush()

    def call_ends(self, call: str, round: int) -> None:
        self._write("c", f",{round},{json.dumps(call)}")
        self._file.flush()
        if self._closed and call == LAST_CALL:
            self._end_file()

    def span_begins(self, name: str) -> None:
        self._write("S", f",{json.dumps(name)}")

    def span_ends(self, name: str) -> None:
        self._write("s", f",{json.dumps(name)}")

    def wait_begins(self, call: str, peer: int | None, round: int) -> None:
        self._write("W", f",{round},{self._peer(peer)},{json.dumps(call)}")

    def wait_ends(self, call: str, peer: int | None, round: int, seconds: float) -> None:
        self._write("w", f",{round},{self._peer(peer)},{json.dumps(call)}")
        if seconds > LONG_WAIT_S:
            self._file.flush()

    def stalled(self, seconds: float, what: str) -> None:
        self._write("!", f",{json.dumps(f'stalled for {seconds:.1f} s: {what}')}")
        self._file.flush()


def check(rank: int, rounds: tuple[int, int] | None, limit: int) -> None:
    """Refuse what cannot be used."""
    if rounds is not None and not (len(rounds) == 2 and 0 <= rounds[0] < rounds[1]):
        raise ConfigurationError(
            f"rank {rank}: rounds={rounds!r}: expected two numbers, the first round and the one after the last, such "
            "as (100, 200)"
        )
    if limit < LEAST_LIMIT:
        raise ConfigurationError(f"rank {rank}: limit={limit!r}: expected a number of bytes, at least {LEAST_LIMIT}")


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _name_of_clock() -> str:
    """Return a text that is equal only for processes that read the same clock; "" where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/time')}"  # a container may have a clock of its own
    except OSError:
        return ""
