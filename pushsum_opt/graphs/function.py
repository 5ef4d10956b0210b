"""A user's own rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .base import Graph

__all__ = ["FunctionGraph", "from_function"]


class FunctionGraph(Graph):
    """A graph from a function; see :func:`from_function`."""

    def __init__(self, function: Callable[[int, int, int], Iterable[int]], period: int | None) -> None:
        self._function = function
        self._period = period

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        return tuple(self._function(rank, size, round))

    def period(self, size: int) -> int | None:
        return self._period

    def __repr__(self) -> str:
        name = getattr(self._function, "__name__", type(self._function).__name__)
        return f"from_function({name})" if self._period is None else f"from_function({name}, period={self._period})"


def from_function(function: Callable[[int, int, int], Iterable[int]], *, period: int | None = None) -> FunctionGraph:
    """Make a graph from ``function(rank, size, round) -> out-peers``.

    Args:
        function: pure: the same answer on every rank, every time.
        period: rounds after which it repeats, at every size; None where it does not, or where that is not known.

    >>> from_function(lambda rank, size, round: [(rank + 1 + round % 2) % size], period=2).in_peers(0, 5, 1)
    (3,)
    """
    return FunctionGraph(function, period)
