"""What of a push-sum is saved, and what of it a rank can take over again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    from .member import Member

__all__ = ["FORMAT", "load", "refuse_newer_format", "restoring_exactly", "state", "without_messages"]

FORMAT = 1
"""The format number of what :func:`state` returns. It grows when older releases cannot read the new state. This release
reads this format and all lower ones."""


def state(member: Member) -> dict[str, Any]:
    """Return what belongs to this rank; see :meth:`pushsum_opt.PushSum.state`."""
    mass = member.mass
    in_flight = member.mode.state() if member.saves_messages else []
    return {
        "format": FORMAT,
        "run": member.run,
        "rank": member.place.participant,
        "size": member.place.participants,
        "round": mass.round,
        "push_weight": mass.weight,
        "data_weight": mass.initial,
        "residuals": member.memory.residual_state(),
        "in_flight": in_flight,
        "wire": member.memory.wire_state(),
    }


@contextmanager
def without_messages(member: Member) -> Iterator[None]:
    """Inside, :func:`state` copies no messages: the caller accounts for their mass."""
    member.saves_messages = False
    try:
        yield
    finally:
        member.saves_messages = True


@contextmanager
def restoring_exactly(member: Member) -> Iterator[None]:
    """Inside, :func:`load` restores push weight, residuals and messages in flight as they were.

    The caller makes sure that every rank loads its own part of one state of all ranks, so that the mass sums to n, and
    that nothing is in flight.
    """
    member.restores_exactly = True
    try:
        yield
    finally:
        member.restores_exactly = False


def load(member: Member, saved: Mapping[str, Any] | None) -> str | None:
    """Continue from what :func:`state` returned. See :meth:`pushsum_opt.PushSum.load_state`."""
    refuse_newer_format(f"rank {member.place.rank}", saved)
    if saved is not None and member.restores_exactly:
        _load_exactly(member, saved)
        return None
    return _load_or_restart(member, saved)


def refuse_newer_format(
    who: str,
    saved: Mapping[str, Any] | None,
    otherwise: str = '; or remove the entry "push_sum" from the state_dict, and this rank starts at w = a',
) -> None:
    """Raise CheckpointError for a state of a later release. The first states had no number: they are of format 1.

    Args:
        who: begins the message: the rank, or the file.
        otherwise: ends the message: what helps beside the later release.
    """
    found = 1 if saved is None else saved.get("format", 1)
    if found > FORMAT:
        raise CheckpointError(
            f"{who}: the push-sum state has format {found}, and this pushsum_opt reads up to {FORMAT}: a newer one "
            f"saved it. Install that version{otherwise}"
        )


def _load_exactly(member: Member, saved: Mapping[str, Any]) -> None:
    """Restore push weight, residuals and messages in flight as they were."""
    member.memory.refresh()
    member.memory.load_residual_state(saved["residuals"])
    weight = member.mode.load_state(saved["in_flight"], float(saved["push_weight"]))
    member.memory.load_wire_state(saved.get("wire", {}))
    member.means.restart()
    member.mass = member.mass.restarted(int(saved["round"])).with_weight(weight)


def _load_or_restart(member: Member, saved: Mapping[str, Any] | None) -> str | None:
    """Take over the round; and the mass, where it is w = a_i anyway.

    Returns:
        None; or, where something of the state is not taken over, why.
    """
    mass = member.mass
    member.mode.forget()
    member.memory.load_residual_state({})
    member.memory.load_wire_state({})
    member.means.restart()
    member.mass = mass.restarted(mass.round if saved is None else int(saved["round"]))
    if saved is None:
        return "it has no push-sum state (saved without pushsum_opt?)"
    place = member.place
    if (saved["rank"], saved["size"]) != (place.participant, place.participants):
        kind = place.host.kind
        return (
            f"it was saved by {kind} {saved['rank']} of {saved['size']}, and this is {kind} {place.participant} of "
            f"{place.participants}"
        )
    weight = float(saved["push_weight"])
    away = sum(len(item["messages"]) + item["missing"] for item in saved["in_flight"])
    if away or not mass.is_initial(weight):
        # One rank cannot know whether the others load the rest of this run's mass, or all of them this very file.
        return f"it had push weight {weight:.6g} and {away} messages in flight to it when it was saved"
    member.mass = member.mass.with_weight(weight)
    member.memory.load_residual_state(saved["residuals"])
    return None
