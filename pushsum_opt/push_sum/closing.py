"""How a push-sum ends: what is in flight is merged, all ranks meet, and what is held is freed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..errors import RanksLost
from ..interrupts import held_back
from . import rounds
from .lifetime import MERGING

if TYPE_CHECKING:
    from .member import Member

__all__ = ["close", "close_unchanged"]

CALL = "close()"


def close(member: Member) -> None:
    """Collective. Merge what is in flight, wait for all ranks, and free what is held. Idempotent.

    After an error it returns at once: the other ranks have been told. In a forked child it does nothing.
    """
    _close(member, partial(rounds.merge_in_flight, member, CALL))


def close_unchanged(member: Member) -> None:
    """Collective. Close, and leave the tensors as they are: what is in flight is given up, with its mass."""
    member.lifetime.successor = True
    _close(member, partial(_merge_and_keep_values, member))


def _close(member: Member, merge_in_flight: Callable[[], None]) -> None:
    lifetime = member.lifetime
    if lifetime.closed or lifetime.forked:
        return
    try:
        if not member.failed:
            for callback in member.before_close:  # each gets over a loss by itself
                callback()
            member.survival.together(partial(_leave, member, merge_in_flight))
    finally:
        lifetime.closed = True
        member.held = []
        cleanly = not member.failed
        if cleanly and not member.stands_still:
            with contextlib.suppress(RanksLost):  # all ranks have closed: one that dies now is missed by none
                member.mode.close()
        member.place.transport.close()
        member.place.host.close(cleanly=cleanly)
        if cleanly:
            member.memory.close()
            member.survival.say_over()
        member.process.forget_closed()


def _leave(member: Member, merge_in_flight: Callable[[], None]) -> None:
    with member.calls.collective(CALL, MERGING):
        member.lifetime.leave(merge_in_flight)


def _merge_and_keep_values(member: Member) -> None:
    memory, kept = member.memory, []
    merges = member.options.staleness != 0 or member.place.host.lanes > 1
    if merges and memory.keeps_its_form():  # a model that was converted is not merged into in any case
        memory.refresh()
        kept = [(chunk, memory.raw(chunk)) for chunk in memory.chunks]
    try:
        rounds.merge_in_flight(member, CALL)
    finally:
        with held_back():
            for chunk, flat in kept:
                memory.put_raw(chunk, flat)
