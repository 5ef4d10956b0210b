"""What a rank gives in a round, as pure functions of its mass: what is sent and merged is decided here, and only here.

The modes execute these rules. Without a run, one can apply them to find out what a run would do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["Masses", "Shares", "asynchronous_gives", "due", "gives", "overlapped_gives"]

Shares = Sequence[tuple[int, float]]
"""(out-peer, share) pairs, as :meth:`pushsum_opt.graphs.Graph.gives` returns them."""

Masses = list[tuple[int, float]]
"""(out-peer, mass) pairs."""

LOWER_BOUND = 0.5
"""Of a_i: no give of an asynchronous rank leaves less, or a fast rank would run away with ever larger steps."""
NEGLIGIBLE = 1e-9
"""Of w: where a rank could give no more than this, it gives nothing."""


def due(staleness: int, round: int, sent_in: int) -> bool:
    """Tell whether round k merges a message that was sent in an earlier round: when it is tau rounds old.

    >>> due(staleness=1, round=5, sent_in=4), due(staleness=2, round=5, sent_in=4)
    (True, False)
    """
    return sent_in <= round - staleness


def gives(shares: Shares, weight: float) -> Masses:
    """Return the masses that a rank gives: its shares of w (Assran et al. 2019, Algorithm 1).

    >>> gives([(1, 0.25), (2, 0.25)], weight=0.8)
    [(1, 0.2), (2, 0.2)]
    """
    return [(peer, weight * share) for peer, share in shares]


def overlapped_gives(shares: Shares, weight: float, initial: float, staleness: int, awaited: int) -> Masses:
    """Return the masses that a rank gives whose messages are merged tau rounds later (Algorithm 2).

    In the first tau rounds nothing comes back yet, and halving w in each would leave 2^-tau of it. So in each of them a
    rank gives what it gives in the steady state, and w falls to its steady value and never below. After a drain on an
    irregular graph w may be less than a; then what there is is spread over these rounds, so that w > 0.

    Args:
        weight: w before the round.
        initial: a, the mass with which the rank began.
        staleness: tau >= 1.
        awaited: rounds whose messages are in flight to this rank; fewer than tau at the start.

    >>> overlapped_gives([(1, 0.5)], weight=1.0, initial=1.0, staleness=2, awaited=0)
    [(1, 0.25)]
    >>> overlapped_gives([(1, 0.5)], weight=0.75, initial=1.0, staleness=2, awaited=1)
    [(1, 0.25)]
    >>> overlapped_gives([(1, 0.5)], weight=0.5, initial=1.0, staleness=2, awaited=2)
    [(1, 0.25)]
    """
    if awaited >= staleness:
        return gives(shares, weight)
    degree = len(shares)
    budget = initial * degree / (1 + degree + staleness * degree)
    budget = min(budget, weight / (1 + staleness - awaited))
    total = sum(share for _, share in shares)
    return [(peer, budget * share / total) for peer, share in shares]


def asynchronous_gives(shares: Shares, weight: float, initial: float, unable: Collection[int] = ()) -> Masses:
    """Return the masses that an asynchronous rank gives; none where w is at its lower bound, half of a.

    It gives share / (1 + sum of shares) instead of share. Messages are in flight for about a round; with the full
    shares w would alternate between the bound and a, every third round would have nothing to give, and the consensus
    distance was about 1.5 times as large (measured).

    Args:
        unable: peers that cannot be given to now.

    >>> asynchronous_gives([(1, 0.5)], weight=1.5, initial=1.0)
    [(1, 0.5)]
    >>> asynchronous_gives([(1, 0.5)], weight=0.625, initial=1.0)
    [(1, 0.125)]
    >>> asynchronous_gives([(1, 0.5)], weight=0.5, initial=1.0)
    []
    """
    moderation = 1.0 + sum(share for _, share in shares)
    masses = [(peer, weight * share / moderation) for peer, share in shares if peer not in unable]
    wanted = sum(mass for _, mass in masses)
    allowed = weight - LOWER_BOUND * initial
    if not masses or allowed <= NEGLIGIBLE * weight:
        return []
    if wanted > allowed:
        masses = [(peer, mass * (allowed / wanted)) for peer, mass in masses]
    return masses
