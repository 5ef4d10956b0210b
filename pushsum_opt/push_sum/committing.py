"""Which calls of all ranks are committed, and how one ends of which a rank does not know it.

A call that all ranks make together is *committed* once all of them have passed a barrier at its end. When ranks die in
such a call, some survivors may have passed that barrier and others not. Then all have done the call's work, and none
repeats it. Otherwise nobody has passed it, and all repeat the call. They find out which by telling each other how many
calls they have committed. An error that all ranks raise in the call, and after which they may go on, is a result too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ..errors import PushSumError

__all__ = ["Commits", "nothing"]

T = TypeVar("T")


def nothing(result: Any) -> None:
    """What is done where nothing is to be done."""


class Commits:
    """The calls of all ranks that this rank knows to be committed, and the one of which it does not know that."""

    def __init__(self) -> None:
        self.count = 0
        """How many calls of all ranks were committed."""
        self._undecided: tuple[Callable[[], None], Callable[[], None]] | None = None

    def attempt(self, work: Callable[[], T], commit: Callable[[T], None], undo: Callable[[T], None]) -> Callable[[], T]:
        """Do the work of a call. Then it is undecided, until :meth:`learn` or :meth:`forget`.

        Args:
            commit, undo: given the result: what is done once the call is committed, and what is done where it is not.

        Returns:
            What ends the call, by its result or by the error of all ranks.
        """
        try:
            result = work()
        except PushSumError as error:
            if not error.on_all_ranks:
                raise
            self._undecided = partial(nothing, error), partial(nothing, error)
            return partial(_fail, error)
        self._undecided = partial(commit, result), partial(undo, result)
        return lambda: result

    def learn(self, count: int) -> None:
        """Take note of how many calls were committed, and end accordingly one that is undecided."""
        if count > self.count:
            assert self._undecided is not None, "another rank has committed a call that this one has not done"
        if self._undecided is not None:
            commit, undo = self._undecided
            self._undecided = None
            if count > self.count:
                commit()
            else:
                undo()
        self.count = count

    def forget(self) -> None:
        """Leave a call that is undecided as it is: it has ended with an error of this rank."""
        self._undecided = None


def _fail(error: Exception) -> Any:
    raise error
