"""The name of the call that a user's program is in, for errors and stall lines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

__all__ = ["calling", "calling_only", "current_call", "nested_calls"]


class _Calls(threading.local):
    def __init__(self) -> None:
        self.names: list[str] = []


_calls = _Calls()


class calling:
    """Inside, errors and stall lines of this thread name a call; of nested ones the outermost, as the user wrote it.

    >>> with calling("checkpoint.save()"), calling("drain()"):
    ...     current_call()
    'checkpoint.save()'
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        _calls.names.append(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _calls.names.pop()


@contextmanager
def calling_only(name: str) -> Iterator[None]:
    """Inside, errors name this call, and none of those that it was made in, which differ between ranks."""
    before, _calls.names = _calls.names, [name]
    try:
        yield
    finally:
        _calls.names = before


def nested_calls() -> str:
    """Return the names of all calls that this thread is in, outermost first."""
    return " > ".join(_calls.names)


def current_call(default: str = "") -> str:
    """Return the name of the outermost call that this thread is in, or ``default`` outside of all."""
    return _calls.names[0] if _calls.names else default
