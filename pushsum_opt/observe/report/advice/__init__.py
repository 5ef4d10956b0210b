"""Advice on a run: rules that look at its figures, and say what to change and on which figure that rests."""

from __future__ import annotations

from collections.abc import Callable

from ..reading import Run
from . import faults, mixing, speed
from .evidence import SLOW, Advice, Evidence

__all__ = ["RULES", "SLOW", "Advice", "Evidence", "advise"]

RULES: tuple[Callable[[Evidence], Advice | None], ...] = (
    faults.ranks_were_lost,
    faults.a_rank_is_silent,
    faults.values_were_not_finite,
    faults.blocks_were_missed,
    faults.versions_differ,
    speed.a_rank_is_slow,
    speed.messages_of_a_rank_are_late,
    speed.messages_can_be_hidden,
    speed.messages_take_too_long,
    speed.single_steps_are_slow,
    speed.calls_of_all_ranks_wait,
    speed.all_reduce_would_do,
    mixing.the_graph_mixes_slowly,
    mixing.ranks_are_far_apart,
)
"""Each returns advice where it holds, and None where it does not."""


def advise(run: Run) -> list[Advice]:
    """Return what to change, what matters most first: faults, and then by the part of a step that it may save."""
    evidence = Evidence(run)
    if not evidence.figures.ranks:
        return []
    found = [advice for rule in RULES if (advice := rule(evidence)) is not None]
    return sorted(found, key=lambda advice: (not advice.fault, -advice.saves))
