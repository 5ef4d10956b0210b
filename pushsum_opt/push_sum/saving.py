"""What of a push-sum is saved, and what of it a rank can take over again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .push_sum import PushSum

__all__ = ["load_exactly", "load_or_restart", "state"]


def state(push_sum: PushSum) -> dict[str, Any]:
    """Return what belongs to this rank; see :meth:`PushSum.state`."""
    mass = push_sum.mass
    return {
        "run": push_sum.run,
        "rank": push_sum.participant,
        "size": push_sum.participants,
        "round": mass.round,
        "push_weight": mass.weight,
        "data_weight": mass.initial,
        "residuals": push_sum.memory.residual_state(),
        "in_flight": push_sum.gossip.state(),
    }


def load_exactly(push_sum: PushSum, saved: Mapping[str, Any]) -> None:
    """Restore push weight, residuals and messages in flight as they were."""
    push_sum.memory.refresh()
    push_sum.memory.load_residual_state(saved["residuals"])
    weight = push_sum.gossip.load_state(saved["in_flight"], float(saved["push_weight"]))
    push_sum.mass = push_sum.mass.restarted(int(saved["round"])).with_weight(weight)


def load_or_restart(push_sum: PushSum, saved: Mapping[str, Any] | None) -> str | None:
    """Take over the round; and the mass, where it is w = a_i anyway.

    Returns:
        None; or, where something of the state is not taken over, why.
    """
    mass = push_sum.mass
    push_sum.gossip.forget()
    push_sum.memory.load_residual_state({})
    push_sum.mass = mass.restarted(mass.round if saved is None else int(saved["round"]))
    if saved is None:
        return "it has no push-sum state (saved without pushsum_opt?)"
    if (saved["rank"], saved["size"]) != (push_sum.participant, push_sum.participants):
        kind = push_sum.host.kind
        return (
            f"it was saved by {kind} {saved['rank']} of {saved['size']}, and this is {kind} {push_sum.participant} of "
            f"{push_sum.participants}"
        )
    weight = float(saved["push_weight"])
    away = sum(len(item["messages"]) + item["missing"] for item in saved["in_flight"])
    if away or not mass.is_initial(weight):
        # One rank cannot know whether the others load the rest of this run's mass, or all of them this very file.
        return f"it had push weight {weight:.6g} and {away} messages in flight to it when it was saved"
    push_sum.mass = push_sum.mass.with_weight(weight)
    push_sum.memory.load_residual_state(saved["residuals"])
    return None
