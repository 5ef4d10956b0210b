"""A user's own rule."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping

from ..errors import GraphError
from .base import Graph

__all__ = ["FunctionGraph", "from_function"]

Answer = int | Iterable[int] | Mapping[int, float]


class FunctionGraph(Graph):
    """A graph from a function; see :func:`from_function`."""

    def __init__(self, function: Callable[[int, int, int], Answer], period: int | None) -> None:
        if period is not None and (isinstance(period, bool) or not isinstance(period, int) or period < 1):
            raise GraphError(f"from_function(period={period!r}): expected a number of rounds, at least 1, or None")
        self._function = function
        self._period = period

    def out_peers(self, rank: int, size: int, round: int) -> tuple[int, ...]:
        if size == 1:
            return ()
        answer = self._function(rank, size, round)
        try:
            if isinstance(answer, Iterable):
                return tuple([operator.index(peer) for peer in answer])
            return (operator.index(answer),)
        except TypeError:
            raise GraphError(
                f"{self!r}: round {round}, rank {rank} of {size}: the function returned {answer!r}: expected a rank, "
                "ranks, or a mapping from ranks to shares"
            ) from None

    def shares(self, rank: int, size: int, round: int) -> tuple[float, ...]:
        answer = self._function(rank, size, round) if size > 1 else ()
        if isinstance(answer, Mapping):
            return tuple([float(share) for share in answer.values()])
        return super().shares(rank, size, round)

    def period(self, size: int) -> int | None:
        return self._period

    def __repr__(self) -> str:
        name = getattr(self._function, "__name__", type(self._function).__name__)
        return f"from_function({name})" if self._period is None else f"from_function({name}, period={self._period})"


def from_function(function: Callable[[int, int, int], Answer], *, period: int | None = None) -> FunctionGraph:
    """Make a graph from ``function(rank, size, round)``, which returns a rank's out-peers.

    It must be pure: the same answer on every rank, every time. In-peers are found by asking it about all ranks, once
    per round; with a ``period`` that is remembered. To say who sends to a rank in closed form, write a subclass of
    :class:`Graph` instead. With one rank it is not called.

    Args:
        function: returns one rank, several, or a mapping from ranks to the shares that they get.
        period: rounds after which it repeats, at every size; None where it does not, or where that is not known.

    >>> from_function(lambda rank, size, round: (rank + 1 + round % 2) % size, period=2).in_peers(0, 5, 1)
    (3,)
    >>> from_function(lambda rank, size, round: {(rank + 1) % size: 0.25}).gives(0, 5, 0)
    ((1, 0.25),)
    """
    return FunctionGraph(function, period)
