"""Which spares are called and invited to take the places of ranks that were lost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..log import log

if TYPE_CHECKING:
    from .continuing import Continue

__all__ = ["can_take_in", "invite", "is_possible", "with_spares"]

_numbers = itertools.count(1)


def can_take_in(survival: Any) -> bool:
    """Call spares for the places that are vacant; tell whether one of them can be taken in now. Local, never waits."""
    if not survival.vacant:
        return False
    crew = survival.crew
    if crew.bench is None or crew.comm.Get_rank() != 0 or not is_possible(survival):
        return False
    for place, spare in crew.bench.call(survival.vacant, crew.processes).items():
        log.info(
            "spare %d begins to take the place of rank %d; it takes part once its script has come to saver.resume()",
            spare,
            place,
        )
    return bool(crew.bench.ready(survival.vacant, crew.processes))


def is_possible(survival: Continue) -> bool:
    """Tell whether newcomers would have the same as those that train: one optimizer with one Saver."""
    members = survival.members
    return (
        len(members) == 1
        and members[0].place.host.lanes == 1
        and sum(follower.has_newcomers for follower in members[0].followers) == 1
    )


def invite(survival: Continue) -> tuple[dict[int, int], str]:
    """Return the spares that come, by the places that they take."""
    crew = survival.crew
    ready = crew.bench.ready(survival.vacant, crew.processes)
    while ready:
        name = f"{crew.processes[0]}.{next(_numbers)}"
        processes, ranks = with_spares(crew, ready)
        come = {place: one for place, one in ready.items() if crew.bench.invite(one, processes, ranks, name)}
        if come == ready:
            return ready, name
        ready = come  # one has died, and the others are told of the smaller group
    return {}, ""


def with_spares(crew: Any, spares: Mapping[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return processes and ranks of those that train and of some spares, in the order of ranks."""
    both = sorted([*zip(crew.ranks, crew.processes, strict=True), *spares.items()])
    return tuple(process for _, process in both), tuple(rank for rank, _ in both)
