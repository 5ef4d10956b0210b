"""Advice on why steps take as long as they do."""

from __future__ import annotations

import statistics

from ..figures import RankFigures
from ..units import bytes_text, figures_text, percent, ranks_text, seconds_text
from .evidence import Advice, Evidence

__all__ = [
    "a_rank_is_slow",
    "all_reduce_would_do",
    "calls_of_all_ranks_wait",
    "messages_can_be_hidden",
    "messages_of_a_rank_are_late",
    "messages_take_too_long",
    "single_steps_are_slow",
]

WORTH_SAYING = 0.1
"""Of a step: what costs less is not mentioned."""
LITTLE = 0.05
"""Of a step: rounds that cost less are no reason for gossip."""
MUCH_OF_ALL_WAITING = 0.1
OUTSTANDING = 2.5
"""A rank stands out where it is waited for so many times as long as the average rank, and 1.8 times the next one."""
SPAN_EXPLAINS = 0.5
"""A span is named where it holds so much of the time that a slow rank takes more."""


def a_rank_is_slow(evidence: Evidence) -> Advice | None:
    """A rank needs much longer for its own work than the median rank."""
    slow, figures = evidence.slow, evidence.figures
    if not slow:
        return None
    worst = slow[0]
    ratio = figures_text(worst.own / figures.own)
    text = (
        f"{_named(evidence, slow)} {'needs' if len(slow) == 1 else 'need up to'} {seconds_text(worst.own)} for the own "
        f"work of a step, {ratio} x the median of {seconds_text(figures.own)}"
    )
    text += _span_that_explains(evidence, worst)
    if evidence.bounded:
        text += (
            f". All ranks run at its pace with staleness={figures.staleness!r}: look at what else its host does, take "
            "it out, or use staleness='unbounded', which waits for no rank."
        )
        return Advice(text, saves=evidence.part(max(0.0, evidence.step - figures.own)))
    if evidence.about["rate_correction"]:
        return None
    return Advice(
        f"{text}. With staleness='unbounded' nobody waits for it, but its data counts less than that of the others: "
        "rate_correction=True makes up for that."
    )


def _named(evidence: Evidence, slow: list[RankFigures]) -> str:
    """Name ranks, and their host where they are all of it."""
    ranks = {one.rank for one in slow}
    hosts = {one.host for one in slow}
    several = len({one.host for one in evidence.figures.ranks}) > 1
    text = ranks_text(ranks).capitalize()
    if several and len(hosts) == 1:
        [host] = hosts
        there = {one.rank for one in evidence.figures.ranks if one.host == host}
        return f"{text}, all ranks of host {host}," if ranks == there and len(ranks) > 1 else f"{text} on host {host}"
    return text


def _span_that_explains(evidence: Evidence, worst: RankFigures) -> str:
    more = worst.own - evidence.figures.own
    usual = {
        name: statistics.median_low(one.spans.get(name, 0.0) for one in evidence.figures.ranks) for name in worst.spans
    }
    found = max(worst.spans, key=lambda name: worst.spans[name] - usual[name], default=None)
    if found is None or worst.spans[found] - usual[found] < SPAN_EXPLAINS * more:
        return ""
    return f" ({seconds_text(worst.spans[found] - usual[found])} more than usual are in the span {found!r})"


def messages_of_a_rank_are_late(evidence: Evidence) -> Advice | None:
    """Others wait for one rank far more than for the rest, and it is not its work that takes long."""
    waited = evidence.figures.waited_for
    everything = sum(waited.values())
    size = len(evidence.figures.ranks)
    if size < 3 or evidence.part(everything / size) < LITTLE:
        return None
    rank, *others = sorted(waited, key=lambda one: -waited[one])
    part = waited[rank] / everything
    next_most = waited[others[0]] if others else 0.0
    if part < max(MUCH_OF_ALL_WAITING, OUTSTANDING / size) or waited[rank] < 1.8 * next_most:
        return None
    if rank in {one.rank for one in evidence.slow}:
        return None
    own = evidence.figures.rank(rank)
    where = "" if own is None else f" on host {own.host}"
    return Advice(
        f"{percent(part)} of all waiting is for rank {rank}{where}, which is not slower than others at its own work: "
        "its messages are late. Look at the network of its host.",
        saves=evidence.part(waited[rank] / size),
    )


def messages_can_be_hidden(evidence: Evidence) -> Advice | None:
    """Synchronous rounds wait for the messages themselves, which could travel while the ranks compute."""
    figures = evidence.figures
    if not evidence.synchronous or evidence.part(figures.message) < WORTH_SAYING:
        return None
    slowest = figures.slowest
    assert slowest is not None
    then = max(slowest.own, figures.message)
    saved = 1 - then / evidence.step
    if saved < LITTLE:
        return None
    return Advice(
        f"Waiting is {percent(evidence.part(figures.wait))} of a step, and one message takes "
        f"{figures_text(evidence.part(figures.message))} steps ({seconds_text(figures.message)}, the median wait of "
        f"the rank that waits least): staleness=1 hides it. A step would take about {seconds_text(then)} in place of "
        f"{seconds_text(evidence.step)}, for one more copy of the model.",
        saves=saved,
    )


def messages_take_too_long(evidence: Evidence) -> Advice | None:
    """Messages take longer than the steps in which they may travel, so fewer bytes are what helps."""
    figures = evidence.figures
    if not evidence.bounded or evidence.part(figures.message) < WORTH_SAYING:
        return None
    slowest = figures.slowest
    assert slowest is not None
    if evidence.synchronous and figures.message <= slowest.own:
        return None  # staleness=1 would hide it
    wire, every = evidence.about["wire_dtype"], evidence.about["gossip_every"]
    bytes_per_step = statistics.median(one.bytes_per_step for one in figures.ranks)
    fewer = {
        None: "wire_dtype='bfloat16' sends half of it and 'int8' a quarter",
        "bfloat16": "wire_dtype='int8' sends half of it",
        "float16": "wire_dtype='int8' sends half of it",
    }.get(wire if wire is None else wire.rpartition(".")[2])
    less_often = f"gossip_every={2 * every} sends it half as often"
    room = "in its own round" if evidence.synchronous else f"though it had {figures.staleness} steps to travel"
    return Advice(
        f"The rank that waits least waits {percent(evidence.part(figures.message))} of a step "
        f"({seconds_text(figures.message)}) for a message, {room}: the network is too slow for "
        f"{bytes_text(bytes_per_step)} from each rank in a step. {f'{fewer}; {less_often}' if fewer else less_often}.",
        saves=evidence.part(figures.message) / 2,
    )


def single_steps_are_slow(evidence: Evidence) -> Advice | None:
    """Ranks wait, though none of them is slow on the whole and messages are quick: they take turns at being slow."""
    figures = evidence.figures
    more = figures.wait - figures.message
    if not evidence.bounded or evidence.slow or evidence.part(more) < WORTH_SAYING:
        return None
    if messages_of_a_rank_are_late(evidence) is not None:
        return None
    ratios = [
        row["step_seconds"]["max"] / row["step_seconds"]["p50"]
        for log in evidence.run.ranks.values()
        for row in log.rows[1:]
        if row["step_seconds"].get("p50", 0.0) > 0
    ]
    if not ratios:
        return None
    staleness = int(figures.staleness) + (2 if evidence.synchronous else 1)
    return Advice(
        f"Waiting is {percent(evidence.part(figures.wait))} of a step, and no rank is slower than others on the whole: "
        f"they take turns. The slowest of every {evidence.about['every']} steps takes "
        f"{figures_text(statistics.median(ratios))} x the usual. staleness={staleness} bridges single slow steps, for "
        "a copy of the model for each message in flight.",
        saves=evidence.part(more) / 2,
    )


def calls_of_all_ranks_wait(evidence: Evidence) -> Advice | None:
    """Much of the time is waited in averages, checkpoints and other calls that ranks make together; no rank is slow."""
    part = evidence.part(evidence.figures.wait_all)
    if part < WORTH_SAYING or evidence.slow:
        return None
    within = "" if evidence.about["within_host"] is None else "gradients within a host, "
    return Advice(
        f"{percent(part)} of the time is waited in calls that ranks make together ({within}averages, checkpoints, "
        "ps.average and the like): make them more seldom, or log with ps.Metric, for which no step waits.",
        saves=part,
    )


def all_reduce_would_do(evidence: Evidence) -> Advice | None:
    """Synchronous rounds cost next to nothing, so that an exact all-reduce would not cost much."""
    figures = evidence.figures
    if not evidence.synchronous or len(figures.ranks) < 2 or evidence.about["gossip_every"] > 1:
        return None
    rounds = statistics.median(one.in_rounds for one in figures.ranks)
    if not 0 < evidence.part(rounds) <= LITTLE:
        return None
    return Advice(
        f"Communication is {percent(evidence.part(rounds))} of a step ({seconds_text(rounds)}, waits included): "
        "all-reduce would do, and it is exact. Gossip pays where links are slow, or ranks differ in speed."
    )
