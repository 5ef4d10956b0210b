"""What the ranks of one host do together between rounds, such as averaging gradients, when ranks of other hosts die.

A rank that goes to a recovery ends what its host does: the others get there too, in the middle of such a call perhaps.
Each rank counts the calls that it has completed, and they tell each other. A call that no rank of the host has
completed is repeated. One that some have completed cannot be: they are further on. The others leave it out then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .following import Follower

if TYPE_CHECKING:
    from .survival import Survival

__all__ = ["HostCalls"]

T = TypeVar("T")


class HostCalls(Follower):
    """The calls of one rank with the other ranks of its host, in their order.

    Args:
        survival: what is done when ranks have died.
    """

    def __init__(self, survival: Survival) -> None:
        self._survival = survival
        self._completed = 0
        self._completed_by_others = 0

    def run(self, work: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """Collective over a host. Do something.

        Args:
            work: what is done; where ranks of other hosts die meanwhile, it is done again.
            otherwise: what is done instead where other ranks of the host had completed it by then.
        """
        if not self._survival.continues:
            return work()
        number = self._completed + 1
        results: list[T] = []

        def once() -> None:
            results.append(work())

        while not results:
            self._survival.once(once)
            if not results and self._completed_by_others >= number:
                results.append(otherwise())
        self._completed = number
        return results[0]

    # ------------------------------------------------------------------ when ranks have died

    def report(self) -> Any:
        return self._completed

    def settle(self, reports: Sequence[Any]) -> None:
        survival = self._survival
        here = survival.host_of(survival.me)
        same = [one for rank, one in zip(survival.ranks, reports, strict=True) if survival.host_of(rank) == here]
        self._completed_by_others = max(same)

    def rejoin(self) -> None: ...
