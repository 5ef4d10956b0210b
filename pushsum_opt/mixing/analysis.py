"""How a graph mixes at one number of ranks, and what a round of it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from ..graphs.convert import as_graph
from .matrices import Floats
from .products import EVERY_ROUND_UNTIL, ROUNDING_ERROR, product_of_rounds

__all__ = ["Mixing", "analyse", "second_singular_value"]

FOLLOWED_ROUNDS = 300
"""So many rounds are computed. Beyond, the error is assumed to fall at the same rate."""
SMALL_ERROR = 1e-8
"""Below this error no further rounds are computed."""


def second_singular_value(graph: Any, size: int, rounds: int | None = None) -> float:
    """Return the second singular value of the product of the first ``rounds`` of a ``graph`` on ``size`` ranks.

    By default the rounds of a period. 0 where they average exactly. Where every round is doubly stochastic, it is the
    part of the disagreement that is left in the worst case.

    Raises:
        ConfigurationError: ``rounds`` is not given and the graph never repeats.

    >>> from pushsum_opt.graphs import OnePeerExponential
    >>> round(second_singular_value(OnePeerExponential(), 7), 6)
    0.125
    """
    graph = as_graph(graph)
    if rounds is None:
        rounds = graph.period(size)
        if rounds is None:
            raise ConfigurationError(f"{graph!r} never repeats: say over how many rounds, rounds=...")
    if size == 1:
        return 0.0
    return product_of_rounds(graph, size).second_singular_value(rounds)


@dataclass(frozen=True)
class Mixing:
    """How a graph mixes at one number of ranks, and what a round of it costs."""

    graph: str
    size: int
    period: int | None
    """Rounds after which it repeats; None: never."""
    rounds: tuple[int, ...]
    errors: tuple[float, ...]
    """The mixing curve: the worst-case consensus error after each of ``rounds``. The root mean square over ranks of the
    distance from the weighted mean, for a start whose consensus distance is 1."""
    rounds_to_exact: int | None
    """Rounds until the average is exact; None: the error fades without ever vanishing."""
    second_singular_value: float | None
    """Of the product of a period; None where there is none."""
    doubly_stochastic: bool
    """Rows sum to 1 too, in every round: with equal data weights w stays 1."""
    push_weights: tuple[float, float]
    """The smallest and the largest w of any rank after any of ``rounds``."""
    step_scales: tuple[float, float]
    """The smallest and the largest a / w: by how much the local steps of a rank are scaled in effect."""
    messages: float
    """Messages that a rank sends in a round, the mean over ranks and rounds."""
    busiest: int
    """Messages that the busiest rank sends, or receives, in a round."""

    def error(self, round: int) -> float:
        """Return the error after a round: between the rounds of the curve, and beyond them by its rate.

        >>> from pushsum_opt.graphs import Ring
        >>> round(analyse(Ring(), 8).error(2) / math.cos(math.pi / 8) ** 2, 12)
        1.0
        """
        if round <= self.rounds[-1]:
            logs = np.log(np.maximum(self.errors, 1e-300))
            return float(np.exp(np.interp(round, self.rounds, logs)))
        return self.errors[-1] * math.exp(-self._rate() * (round - self.rounds[-1]))

    def rounds_to(self, error: float) -> int | None:
        """Return the rounds until the error is at most this and stays so; None: never, or too slowly to tell.

        Beyond the curve it is taken to fall on as it did in its second half.

        >>> from pushsum_opt.graphs import Ring
        >>> analyse(Ring(), 100).rounds_to(1e-3)
        13996
        """
        above = [index for index, value in enumerate(self.errors) if value > error]
        if not above:
            return 0
        last = above[-1]
        if last + 1 < len(self.rounds):
            if self.rounds[last + 1] == self.rounds[last] + 1:
                return self.rounds[last + 1]
            return next(k for k in range(self.rounds[last] + 1, self.rounds[last + 1] + 1) if self.error(k) <= error)
        rate = self._rate()
        if rate <= 0.0:
            return None
        return self.rounds[-1] + math.ceil(math.log(self.errors[-1] / error) / rate - 1e-9)

    def _rate(self) -> float:
        """Return by how much the logarithm of the error falls per round, over whole periods in the curve's end."""
        whole = self.period if self.period is not None and self.period < self.rounds[-1] else 1
        span = max(whole, self.rounds[-1] // 2 // whole * whole)
        begin = self.rounds[-1] - span
        if begin < 0 or self.errors[-1] == 0.0:
            return math.inf if self.errors[-1] == 0.0 else 0.0
        logs = np.log(np.maximum(self.errors, 1e-300))
        rate = float(np.interp(begin, self.rounds, logs) - logs[-1]) / max(1, span)
        return rate if rate > 1e-12 else 0.0


def analyse(
    graph: Any, size: int, *, data_weights: Sequence[float] | None = None, rounds: int = FOLLOWED_ROUNDS
) -> Mixing:
    """Analyse a graph: how fast it mixes from round 0 on, what it does to w, and what a round costs.

    Takes the spectrum where the ranks are alike (:meth:`Graph.symmetry`), products up to 512 ranks, and beyond that
    probe vectors sent forwards and backwards through the rounds, which find the worst case to within a few percent.

    Args:
        graph: a graph, or what :func:`~pushsum_opt.graphs.resolve` takes; not checked here.
        size: number of ranks, n.
        data_weights: v_i of every rank; None: all equal.
        rounds: how many are followed, unless the error is below 1e-8 before.

    Raises:
        ConfigurationError: the data weights are not ``size`` numbers above 0.
        GraphError: the graph is not defined at this size.

    >>> from pushsum_opt.graphs import OnePeerExponential
    >>> found = analyse(OnePeerExponential(), 32)
    >>> found.rounds_to_exact, found.messages, found.doubly_stochastic, found.push_weights
    (5, 1.0, True, (1.0, 1.0))
    """
    graph = as_graph(graph)
    graph.check_size(size)
    weights = _normalised(data_weights, size)
    product = product_of_rounds(graph, size, weights)
    # Before any round, E is the projection I - 1 a^T / n; this is its norm.
    curve_rounds, errors = [0], [float(np.sqrt(np.mean(weights**2))) if size > 1 else 0.0]
    masses = [weights.min(), weights.max()]
    scales = [1.0]
    doubly_stochastic = True
    while product.round < rounds and errors[-1] > SMALL_ERROR:
        product.advance()
        doubly_stochastic &= product.row_sums_are_one
        masses += [product.mass.min(), product.mass.max()]
        scales += [(weights / product.mass).min(), (weights / product.mass).max()]
        if product.round <= EVERY_ROUND_UNTIL or product.every_round or product.round >= 1.125 * curve_rounds[-1]:
            curve_rounds.append(product.round)
            errors.append(product.error())
    period = graph.period(size)
    second = None
    if doubly_stochastic and (weights == 1.0).all() and period in curve_rounds:
        second = errors[curve_rounds.index(period)]  # then it is the norm of E
    elif period is not None and period <= FOLLOWED_ROUNDS:
        second = second_singular_value(graph, size)
    cycle = period or max(graph.window(size), product.round)
    costs = [product.messages(round) for round in range(min(cycle, FOLLOWED_ROUNDS))]
    return Mixing(
        graph=repr(graph),
        size=size,
        period=period,
        rounds=tuple(curve_rounds),
        errors=tuple(errors),
        rounds_to_exact=_rounds_to_exact(curve_rounds, errors),
        second_singular_value=second,
        doubly_stochastic=doubly_stochastic,
        push_weights=(float(min(masses)), float(max(masses))),
        step_scales=(float(min(scales)), float(max(scales))),
        messages=float(np.mean([mean for mean, _ in costs])),
        busiest=max(most for _, most in costs),
    )


def _rounds_to_exact(rounds: Sequence[int], errors: Sequence[float]) -> int | None:
    for index, error in enumerate(errors):
        if error <= ROUNDING_ERROR:
            vanished = index == 0 or errors[index - 1] > 1e-4  # at once; otherwise it faded
            return rounds[index] if vanished else None
    return None


def _normalised(data_weights: Sequence[float] | None, size: int) -> Floats:
    if data_weights is None:
        return np.ones(size)
    weights = np.array(data_weights, np.float64)
    if weights.shape != (size,) or not (weights > 0).all() or not np.isfinite(weights).all():
        raise ConfigurationError(f"data_weights={data_weights!r}: expected {size} numbers above 0, one for each rank")
    weights *= size / weights.sum()
    return weights
