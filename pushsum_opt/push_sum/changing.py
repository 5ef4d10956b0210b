"""Other tensors than those of the start: more of them, or one in the place of another."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from . import opening, rounds
from .lifetime import JOINING
from .member import Member

__all__ = ["extend", "replace", "retract"]


def extend(member: Member, tensors: Mapping[str, Any], call: str, by_element: Collection[str] = ()) -> None:
    """Collective. Exchange more tensors from the next round on, beside those that are there.

    What is in flight is merged first.

    Args:
        call: the name of the call that all ranks make together.
        by_element: names of those that are merged element by element.
    """
    rounds.drain_within(member, call)
    with member.calls.collective(call, JOINING):
        member.memory.extend(list(tensors.values()), list(tensors), by_element)
        member.held = [*member.held, *tensors.values()]
        opening.agree(member.place, member.memory, member.options)
        member.mode.reserve()


def retract(member: Member, tensors: Mapping[str, Any]) -> None:
    """Undo :func:`extend`, as far as it came. Local."""
    added = [name for name in tensors if name in member.memory.tensors]
    if added:
        member.memory.take_away(added)
        member.held = member.held[: len(member.held) - len(added)]


def replace(member: Member, name: str, tensor: Any) -> None:
    """Exchange another tensor, of the same shape and dtype, in the place of one; what it holds is kept. Local."""
    old = member.memory.tensors[name]
    member.memory.replace(name, tensor)
    member.held = [tensor if one is old else one for one in member.held]
