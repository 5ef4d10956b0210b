"""Delays an interrupt while something short must be done completely, such as giving tensors their old values."""

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
    """Tell whether an error comes from outside: Ctrl-C, or sys.exit() in a signal handler."""
    return not isinstance(error, Exception)


@contextmanager
def held_back() -> Iterator[None]:
    """Inside, Python's signal handlers are not called; at the end of the block the handlers of signals that came are.

    Use it for what is local and short: nothing inside may wait for another rank. On threads other than the main one it
    does nothing, because Python calls no handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: dict[int, tuple[Callable[..., Any], FrameType | None]] = {}

    def note(handler: Callable[..., Any], number: int, frame: FrameType | None) -> None:
        came.setdefault(number, (handler, frame))

    with contextlib.ExitStack() as afterwards:
        # All handlers are back before the first one is called. One that raises does not keep the others from being
        # called.
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
