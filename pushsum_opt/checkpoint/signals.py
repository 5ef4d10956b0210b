"""Signals that ask for an end: remembered at once; all ranks act on them later, in the same round."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ..errors import ConfigurationError

__all__ = ["Signals", "refuse_unusable"]

_taken: weakref.WeakSet[Signals] = weakref.WeakSet()


def _give_back_in_child() -> None:
    """In a forked child SIGTERM has its default effect again: a parent may end a DataLoader's worker in this way."""
    for one in list(_taken):
        one.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_give_back_in_child)


def refuse_unusable(numbers: Sequence[int]) -> None:
    """Raise ConfigurationError where one is no signal, or one that no process can take."""
    never = {getattr(signal, name, None) for name in ("SIGKILL", "SIGSTOP")}
    for number in numbers:
        if number not in signal.valid_signals() or number in never:
            raise ConfigurationError(
                f"signals={numbers!r}: expected signals that a process can take, such as signal.SIGTERM, got {number!r}"
            )


class Signals:
    """Remembers whether one of some signals has come.

    Python calls signal handlers on the main thread only: made on another thread, this object hears of no signal. A
    handler that was there before is called as well.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self.received: str | None = None
        """The name of the first one that came."""
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                self._previous[number] = signal.signal(number, self._take)
            _taken.add(self)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
        previous = self._previous.get(number)
        if callable(previous):
            previous(number, frame)

    def close(self) -> None:
        """Put the handlers back that were there before. Idempotent."""
        while self._previous:
            number, previous = self._previous.popitem()
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)
