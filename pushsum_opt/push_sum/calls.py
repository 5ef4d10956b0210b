"""The calls that a rank makes, as contexts: who hears of them, and how errors name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..observe.events import Events
from ..transport.calls import calling
from .lifetime import WHOLE, Lifetime

__all__ = ["Calls"]


class Calls:
    """The collective calls and the local steps of one rank.

    Args:
        lifetime: tells the other ranks when this one fails in a call.
        round: gives the number of rounds that this rank has completed.
        events: gives those that listen now.
    """

    def __init__(self, lifetime: Lifetime, round: Callable[[], int], events: Callable[[], Events]) -> None:
        self._lifetime = lifetime
        self._round = round
        self._events = events

    @contextmanager
    def collective(self, call: str, left: str = WHOLE) -> Iterator[None]:
        """Inside, this rank makes a collective call: listeners and errors name it; the others hear of failures.

        Args:
            left: what an interrupt inside leaves of the tensors.
        """
        with self._lifetime.failing_together(left), calling(call), self.during(call):
            yield

    @contextmanager
    def during(self, call: str) -> Iterator[None]:
        """Tell listeners when a collective call begins and ends."""
        round = self._round()
        self._events().call_begins(call, round)
        try:
            yield
        finally:
            self._events().call_ends(call, round)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Tell listeners when a local step begins and ends."""
        round = self._round()
        self._events().local_step_begins(round)
        try:
            yield
        finally:
            self._events().local_step_ends(round)
