"""Advice on what has gone wrong, whatever the speed."""

from __future__ import annotations

from collections import Counter

from ..units import figures_text, percent, ranks_text, seconds_text, since_text
from .evidence import Advice, Evidence

__all__ = ["a_rank_is_silent", "blocks_were_missed", "ranks_were_lost", "values_were_not_finite", "versions_differ"]

SILENT_S = 30.0
SILENT_ROWS = 3
"""A rank is silent where it wrote nothing for so long, and for as long as so many rows usually take."""
BYTES_OF_A_BLOCK = 516
"""Of 512 elements in eight bits, with what belongs to the block."""
TOO_MANY_BLOCKS = 1e-4


def ranks_were_lost(evidence: Evidence) -> Advice | None:
    """Ranks died, and the others went on."""
    losses = evidence.run.losses
    if not losses:
        return None
    ranks = {rank for loss in losses for rank in loss["ranks"]}
    replaced = {rank for loss in losses for rank in loss["replaced"]}
    rounds = ", ".join(str(loss["round"]) for loss in losses)
    longest = seconds_text(max(loss["seconds"] for loss in losses))
    again = f"; spares took the places of {ranks_text(replaced)}" if replaced else ""
    mass = figures_text(sum(loss["mass"] for loss in losses))
    return Advice(
        f"{ranks_text(ranks).capitalize()} died (round {rounds}); mass of {mass} of {evidence.about['participants']} "
        f"was lost{again}. The others went on after {longest} at most. The output of {ranks_text(ranks)} may say why.",
        fault=True,
    )


def a_rank_is_silent(evidence: Evidence) -> Advice | None:
    """A rank has stopped to write, and neither ended nor was counted as lost; or it never wrote."""
    run = evidence.run
    long = max(SILENT_S, SILENT_ROWS * evidence.about["every"] * evidence.step)
    silent = [
        log
        for log in run.ranks.values()
        if log.ended is None and log.rank not in run.lost and run.seen - log.seen > long
    ]
    if silent:
        worst = max(silent, key=lambda log: run.seen - log.seen)
        return Advice(
            f"{ranks_text([log.rank for log in silent]).capitalize()} wrote nothing in the last "
            f"{since_text(run.seen - worst.seen)} while others did, and did not end: it hangs, or was killed. Look at "
            f"its output, and at `py-spy dump` on host {worst.about['host']}, process {worst.about['pid']}.",
            fault=True,
        )
    missing = [rank for rank in run.missing if rank not in run.lost]
    if missing and run.seen - run.began > long:
        return Advice(
            f"There is no file of {ranks_text(missing)} of {run.size}: is the folder shared by all hosts?", fault=True
        )
    return None


def values_were_not_finite(evidence: Evidence) -> Advice | None:
    """Parts of messages were inf or nan, and not merged."""
    skipped = {one.rank: one.skipped for one in evidence.figures.ranks if one.skipped}
    if not skipped:
        return None
    return Advice(
        f"{ranks_text(skipped).capitalize()} did not merge {sum(skipped.values())} parts of messages that were not "
        "finite, so the mean over ranks has changed: look at the loss and the gradients of the ranks that send to "
        "them.",
        fault=True,
    )


def blocks_were_missed(evidence: Evidence) -> Advice | None:
    """Messages in eight bits were often too far from the receiver's own values."""
    figures = evidence.figures
    missed = sum(one.missed for one in figures.ranks)
    sent = sum(one.more["sent_bytes_total"] for one in figures.ranks) / BYTES_OF_A_BLOCK
    if missed <= TOO_MANY_BLOCKS * sent or not sent:
        return None
    return Advice(
        f"{percent(missed / sent)} of the blocks that came in eight bits ({missed}) were too far from the receiver's "
        "own values and were not merged: if it goes on, take wire_dtype='bfloat16'.",
        fault=True,
    )


def versions_differ(evidence: Evidence) -> Advice | None:
    """Ranks run different versions of what they compute with."""
    for name in sorted({name for log in evidence.run.ranks.values() for name in log.about["versions"]}):
        found = {rank: log.about["versions"].get(name, "none") for rank, log in evidence.run.ranks.items()}
        usual, count = Counter(found.values()).most_common(1)[0]
        others = [rank for rank, version in found.items() if version != usual]
        if others:
            return Advice(
                f"{ranks_text(others).capitalize()} ran {name} {found[others[0]]}, and {count} others {usual}: "
                "results and speed may differ. Make the environments equal.",
                fault=True,
            )
    return None
