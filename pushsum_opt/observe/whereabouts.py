"""Where a rank's program is, for the stall lines of ranks that wait for it."""

from __future__ import annotations

import inspect
import threading
import time
import weakref
from collections.abc import Callable

from .events import Listener

__all__ = ["Whereabouts"]


class Whereabouts(Listener):
    """Knows in which span, or after which round, the program of this rank is.

    Args:
        answer: called at the beginning and the end of each span: other ranks may have asked for this one. A rank that
            computes has no other moment for it, unless a thread moves its messages.
    """

    def __init__(self, answer: Callable[[], None]) -> None:
        # A method's object is not kept alive: the roll call of the job keeps this until the next optimizer is made.
        self._find_answer: Callable[[], Callable[[], None] | None]
        self._find_answer = weakref.WeakMethod(answer) if inspect.ismethod(answer) else lambda: answer
        self._thread = threading.get_ident()
        self._spans: list[tuple[str, float]] = []
        self._between = "before its first round", time.monotonic()

    def __call__(self) -> tuple[str, float]:
        """Return where it is, such as ``in "forward"``, and for how many seconds."""
        where, since = (*self._spans[-1:], self._between)[0]  # another thread asks: a span may end at any moment
        return where, time.monotonic() - since

    def round_begins(self, round: int) -> None:
        self._between = f"in round {round}", time.monotonic()

    def round_ends(self, round: int, push_weight: float) -> None:
        self._between = f"after round {round}", time.monotonic()

    def span_begins(self, name: str) -> None:
        if threading.get_ident() == self._thread:
            self._spans.append((f'in "{name}"', time.monotonic()))
            self._answer()

    def span_ends(self, name: str) -> None:
        if threading.get_ident() == self._thread and self._spans:
            self._spans.pop()
            self._answer()

    def _answer(self) -> None:
        answer = self._find_answer()
        if answer is not None:
            answer()
