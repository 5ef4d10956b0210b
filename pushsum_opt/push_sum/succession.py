"""Which older push-sums end when a new one is made. All ranks decide it together, and close the same ones.

A new optimizer over the parameters of an older one replaces it. An optimizer that its user has dropped on every rank is
closed too. Where it still lives on one rank, because the garbage collector has not run there, it stays open on all.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..channel import Channel
from ..errors import MismatchError, PushSumError
from ..log import log
from . import closing

__all__ = ["Owner", "close_what_is_over"]

FAILED, REPLACED, DROPPED, IN_USE = "failed", "replaced", "dropped", "in use"
COLLECT_FROM = 16
"""With so many open push-sums, and at every doubling, the garbage collector runs."""


class Owner:
    """The wrapper around a push-sum, if there is one.

    Args:
        wrapper: it is not kept alive; None: there is none.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = None if wrapper is None else weakref.ref(wrapper)

    @property
    def exists(self) -> bool:
        """Whether there was one."""
        return self._wrapper is not None

    @property
    def is_gone(self) -> bool:
        """Whether it is gone on this rank. It may live on others: never act on it alone."""
        return self._wrapper is not None and self._wrapper() is None


def close_what_is_over(new: Any, tensors: Iterable[Any]) -> None:
    """Collective. Close what ``new`` (a push-sum that is being made, over ``tensors``) replaces, and what was dropped.

    Raises:
        MismatchError: the same on every rank, where ``new`` takes an older one's place on some of its ranks only.
    """
    open_now = new.process.members
    if len(open_now) >= COLLECT_FROM and len(open_now).bit_count() == 1:
        gc.collect()
    mine = {id(tensor) for tensor in tensors} if new.owner.exists else set()
    states = {one.name: _state(one, mine) for one in open_now}
    found = _count(new, states)
    _refuse_half_replaced(new, found)
    for one in open_now:
        counts = found[one.name]
        all_here = sum(counts.values()) == one.place.size
        if (all_here and not counts[IN_USE]) or states[one.name] == FAILED:
            _close(one, torn=bool(counts[FAILED]))


def _state(one: Any, tensors: set[int]) -> str:
    exchanged = {id(tensor) for tensor in one.held}
    replaced = one.owner.exists and bool(exchanged) and exchanged <= tensors
    if one.failed and (replaced or one.owner.is_gone):
        return FAILED
    if replaced:
        return REPLACED
    return DROPPED if one.owner.is_gone else IN_USE


def _count(new: Any, states: Mapping[str, str]) -> dict[str, Counter[str]]:
    """Collective. Return, for every push-sum that is open anywhere, on how many ranks it is in which state."""
    found = {name: Counter([state]) for name, state in states.items()}
    for channel in new.place.channels:  # one after the other they reach every rank
        found = _sum(channel, found)
    return found


def _sum(channel: Channel, counts: Mapping[str, Counter[str]]) -> dict[str, Counter[str]]:
    total: dict[str, Counter[str]] = {}
    for one in channel.gather_objects(counts, "comparing what is still open"):
        for name, count in one.items():
            total.setdefault(name, Counter()).update(count)
    return total


def _refuse_half_replaced(new: Any, found: Mapping[str, Counter[str]]) -> None:
    for counts in found.values():
        others = counts[DROPPED] + counts[IN_USE]
        if counts[REPLACED] and others:
            new.place.channel.let_everyone_know()
            raise MismatchError(
                f"rank {new.place.rank}: on {counts[REPLACED]} ranks the new optimizer has the parameters of one that "
                f"is still open, and would take its place; on {others} ranks it has other parameters. Wrap the same "
                "model on every rank, or close() the older optimizer on every rank first"
            )


def _close(one: Any, *, torn: bool) -> None:
    """Close without changing the tensors: its user did not ask for it, and may have loaded other values."""
    try:
        if torn and not one.failed:
            one.fail(PushSumError("it had failed on another rank"))
        closing.close_unchanged(one)
    except PushSumError as error:
        log.warning("rank %d: closing an optimizer that is no longer used: %s", one.place.rank, error)
