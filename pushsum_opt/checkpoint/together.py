"""Runs what may fail on one rank in such a way that it then fails on all ranks of the job, with the same error.

Where several ranks of a host are one participant of the gossip, all of them are meant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NoReturn

from ..channel.agreement import listed
from ..errors import CheckpointError, PeerFailed
from ..push_sum import PushSum

__all__ = ["raise_alike", "sum_over_job", "try_together"]


def _gather(push_sum: PushSum, mine: Any, what: str) -> list[Any]:
    """Collective. Return every rank's value, in rank order. JSON must be able to hold it."""
    known = [[push_sum.rank, mine]]
    with push_sum.member.lifetime.failing_together():
        for channel in push_sum.member.place.channels:
            known = [pair for pairs in channel.gather_objects(known, what) for pair in pairs]
    return [value for _, value in sorted(known, key=lambda pair: int(pair[0]))]


def sum_over_job(push_sum: PushSum, values: Any, what: str) -> None:
    """Collective. Replace a numpy array (float64) by its sum over all ranks of the job, equal bits on each."""
    with push_sum.member.lifetime.failing_together():
        for channel in push_sum.member.place.channels:
            channel.sum(values, what, round=push_sum.round)


def try_together(push_sum: PushSum, doing: str, function: Callable[[], Any]) -> list[Any]:
    """Collective. Run a function on every rank, and raise on all of them where it fails on some.

    A failure does not harm the exchange of messages: a program that catches the error may train on.

    Args:
        doing: what the ranks do, for messages: "saving", "loading".
        function: returns something that JSON can hold.

    Returns:
        What it returned on each rank of the job, in rank order.

    Raises:
        CheckpointError: it failed on some rank; the same on every rank, naming each rank and its reason.
    """
    cause: Exception | None = None
    try:
        mine = {"result": function()}
    except Exception as error:
        cause = error
        mine = {"problem": str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"}
    everyone = _gather(push_sum, mine, doing)
    problems = {rank: one["problem"] for rank, one in enumerate(everyone) if "problem" in one}
    if problems:
        raise_alike(push_sum, doing, problems, cause)
    return [one["result"] for one in everyone]


def raise_alike(push_sum: PushSum, doing: str, problems: dict[int, str], cause: Exception | None = None) -> NoReturn:
    """Collective. Raise an error that all ranks know of. No rank ends before the others know it too."""
    with contextlib.suppress(PeerFailed):
        for channel in push_sum.member.place.channels:
            channel.barrier(f"everyone to see the error in {doing}", round=push_sum.round)
    holders: dict[str, list[int]] = {}
    for rank, text in problems.items():
        holders.setdefault(text, []).append(rank)
    lines = [f"{listed(ranks)}: {text}" for text, ranks in holders.items()]
    more = "" if len(lines) <= 3 else f"; and {len(lines) - 3} more"
    error = CheckpointError(f"{doing} a checkpoint failed on {'; '.join(lines[:3])}{more}")
    error.on_all_ranks = True
    raise error from cause
