"""Holds an interrupt back while something short must not be left half-done, such as putting tensors back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

__all__ = ["held_back", "is_interrupt"]


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an error is no fault of anything here: Ctrl-C, or sys.exit() in a signal handler."""
    return not isinstance(error, Exception)


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, Python's signal handlers wait; at the end of the block those of the signals that came are called.

    For what is local and short: nothing inside may wait for another rank. On other threads than the main one, where
    Python calls no handlers, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: dict[int, tuple[Callable[..., Any], FrameType | None]] = {}

    def note(handler: Callable[..., Any], number: int, frame: FrameType | None) -> None:
        came.setdefault(number, (handler, frame))

    with contextlib.ExitStack() as afterwards:
        # Called last, when all handlers are back; one that raises keeps no other from being called.
        afterwards.callback(_call_all, came)
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler):
                afterwards.callback(signal.signal, number, handler)
                signal.signal(number, partial(note, handler))
        yield


def _call_all(came: dict[int, tuple[Callable[..., Any], FrameType | None]]) -> None:
    with contextlib.ExitStack() as calls:
        for number, (handler, frame) in came.items():
            calls.callback(handler, number, frame)
