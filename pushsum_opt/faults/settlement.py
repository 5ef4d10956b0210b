"""What survivors do with the mass after a loss: a pure function of everybody's accounts, so all find the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

__all__ = ["Account", "Settlement", "last_heard", "settle", "shared", "surely_sent"]


@dataclass(frozen=True, slots=True)
class Account:
    """What one survivor tells the others once it has taken back what nobody opened."""

    weight: float
    """w, with what it has taken back."""

    data_weight: float
    """v, as the user gave it."""

    round: int
    """The number of rounds that it has completed."""

    taken_back: int = 0
    """How many messages it has taken back."""

    mass_taken_back: float = 0.0


@dataclass(frozen=True, slots=True)
class Settlement:
    """What holds from now on."""

    factor: float
    """w and the residuals of every survivor are multiplied by this; then the w sum to n'."""

    initial: tuple[float, ...]
    """a of each survivor: n' v / sum of v."""

    round: int
    """K, the first round in which they gossip again: the largest that any of them had reached."""

    lost: float
    """The mass that the dead took with them: n less the sum of w."""

    taken_back: int
    mass_taken_back: float


def settle(accounts: Sequence[Account], before: int) -> Settlement:
    """Return what holds after a loss.

    Args:
        accounts: of the survivors, in the order of their ranks.
        before: n, the number of participants before the loss; that is also the mass that there was.

    >>> settlement = settle([Account(0.5, 1.0, 7), Account(1.0, 1.0, 8)], before=3)
    >>> settlement.factor, settlement.initial, settlement.round, settlement.lost
    (1.3333333333333333, (1.0, 1.0), 8, 1.5)
    """
    now = len(accounts)
    held = math.fsum(one.weight for one in accounts)
    weights = [one.data_weight for one in accounts]
    alike = all(weight == weights[0] for weight in weights)
    total = math.fsum(weights)
    return Settlement(
        factor=now / held,
        initial=tuple(1.0 if alike else now * weight / total for weight in weights),
        round=max(one.round for one in accounts),
        lost=before - held,
        taken_back=sum(one.taken_back for one in accounts),
        mass_taken_back=math.fsum(one.mass_taken_back for one in accounts),
    )


def shared(accounts: Sequence[Account], giver: int, newcomers: Collection[int]) -> list[Account]:
    """Return what holds once one rank has given newcomers, which had nothing, equal shares of what it holds.

    Args:
        giver, newcomers: places in ``accounts``.

    >>> [one.weight for one in shared([Account(0.5, 1.0, 7), Account(0.0, 1.0, 7), Account(1.5, 1.0, 7)], 0, [1])]
    [0.25, 0.25, 1.5]
    """
    part = accounts[giver].weight / (1 + len(newcomers))
    takes = {giver, *newcomers}
    return [replace(one, weight=part) if place in takes else one for place, one in enumerate(accounts)]


def last_heard(reports: Sequence[Mapping[int, int]]) -> dict[int, int]:
    """Return the latest round of which anybody has opened a message, by its sender."""
    latest: dict[int, int] = {}
    for report in reports:
        for sender, round in report.items():
            latest[sender] = max(round, latest.get(sender, -1))
    return latest


def surely_sent(
    heard: Mapping[int, int],
    dead: Collection[int],
    in_peers: Callable[[int, int], Sequence[int]],
    staleness: int,
    first: int,
) -> dict[int, int]:
    """Return the latest round in which each dead rank has surely sent: -1 where that is not known.

    A rank that has sent in round k has merged before all that was sent to it up to round k - 1 - tau: so its in-peers
    had sent that. This tells of dead ranks that only other dead ranks have heard.

    Args:
        heard: the latest round of which a survivor has opened a message, by its sender.
        in_peers: of a rank, in a round.
        staleness: tau.
        first: earlier rounds matter to nobody.

    >>> ring = lambda rank, round: ((rank - 1) % 4,)  # 1 and 2 have died; 3 has opened a message of 2, of round 6
    >>> surely_sent({2: 6}, {1, 2}, ring, staleness=0, first=0)
    {1: 5, 2: 6}
    """
    latest = {rank: heard.get(rank, -1) for rank in sorted(dead)}
    todo = [rank for rank in latest if latest[rank] >= 0]
    while todo:
        rank = todo.pop()
        others = {other for other in latest if other != rank}
        for round in range(latest[rank] - 1 - staleness, first - 1, -1):
            others = {other for other in others if latest[other] < round}
            if not others:
                break
            for other in others.intersection(in_peers(rank, round)):
                latest[other] = round
                todo.append(other)
    return latest
