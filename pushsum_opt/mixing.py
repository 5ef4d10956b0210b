"""What rounds do to the mass of all ranks: mixing matrices, and how fast they bring the ranks together. Pure numpy.

With Phi = P(k - 1) ... P(0), ranks that start at z and a hold z(k) = diag(Phi a)^-1 Phi diag(a) z after k rounds of
push-sum, and tend to the weighted mean a^T z / n [1]_. The analysis looks at the matrix
E = diag(Phi a)^-1 Phi diag(a) - 1 a^T / n, which takes where the ranks start to how far they still are from that mean.
Its norm is the worst case.

References:
    .. [1] Kempe, Dobra, Gehrke (2003). Gossip-Based Computation of Aggregate Information. FOCS.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ConfigurationError
from .graphs import Graph
from .graphs.convert import as_graph
from .graphs.sparse import SparseRounds, sparse_round

__all__ = ["Mixing", "analyse", "mixing_matrix", "second_singular_value", "window_matrix"]

Floats = npt.NDArray[np.float64]

FOLLOWED_ROUNDS = 300
"""So many rounds are computed. Beyond, the error is assumed to fall at the same rate."""
SMALL_ERROR = 1e-8
"""Below this error no further rounds are computed."""
ROUNDING_ERROR = 1e-12
"""An error below this is rounding alone: the average is exact."""
DENSE_RANKS = 512
"""Up to so many ranks the product of the rounds is formed as a dense matrix."""
EVERY_ROUND_UNTIL = 32
"""Up to this round the error is computed after every round; beyond, after rounds that grow by an eighth."""
PROBES = 8
MANY_MESSAGES = 16
"""Per rank and round: with more than these, fewer sweeps are made."""


# ---------------------------------------------------------------------- matrices


def mixing_matrix(graph: Any, size: int, round: int) -> Floats:
    """Return P(k) of a ``graph`` on n = ``size`` ranks in ``round`` k, shape (n, n); its columns sum to 1.

    Column i says where the mass of rank i goes.

    >>> from pushsum_opt.graphs import Ring
    >>> mixing_matrix(Ring(), 3, 0)
    array([[0.5, 0. , 0.5],
           [0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])
    """
    return sparse_round(as_graph(graph), size, round).apply(np.eye(size))


def window_matrix(graph: Any, size: int, rounds: int, first: int = 0) -> Floats:
    """Return P(first + rounds - 1) ... P(first + 1) P(first) of a ``graph``, shape (n, n) with n = ``size``.

    >>> from pushsum_opt.graphs import OnePeerExponential
    >>> window_matrix(OnePeerExponential(), 4, 2)[0]
    array([0.25, 0.25, 0.25, 0.25])
    """
    graph = as_graph(graph)
    product = np.eye(size)
    for round in range(first, first + rounds):
        product = sparse_round(graph, size, round).apply(product)
    return product


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
    return _product(graph, size).second_singular_value(rounds)


# ---------------------------------------------------------------------- the analysis


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
    product = _product(graph, size, weights)
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


# ---------------------------------------------------------------------- three ways to follow a product of rounds


def _product(graph: Graph, size: int, weights: Floats | None = None) -> _Product:
    if weights is None:
        weights = np.ones(size)
    if (weights == 1.0).all() and graph.symmetry(size) is not None:
        return _Spectrum(graph, size, weights)
    return (_Dense if size <= DENSE_RANKS else _Probed)(graph, size, weights)


class _Product(ABC):
    """Phi, the product of the first ``round`` rounds."""

    every_round = True
    """The error after each round is cheap."""
    row_sums_are_one = True
    """Whether the last round was doubly stochastic."""

    def __init__(self, graph: Graph, size: int, weights: Floats) -> None:
        self.graph = graph
        self.size = size
        self.weights = weights
        self.mass = weights
        self.round = 0

    @abstractmethod
    def advance(self) -> None:
        """Multiply one more round on."""

    @abstractmethod
    def error(self) -> float:
        """Return the norm of E."""

    @abstractmethod
    def second_singular_value(self, rounds: int) -> float:
        """Return that of the product of the first ``rounds`` rounds."""

    @abstractmethod
    def messages(self, round: int) -> tuple[float, int]:
        """Return the mean of the messages that a rank sends, and the most that one sends or receives."""


class _Spectrum(_Product):
    """Rounds that are convolutions over a grid: their eigenvalues are Fourier transforms of what rank 0 gives.

    They commute and are normal, so the singular values of a product are products of the eigenvalues' moduli.
    """

    def __init__(self, graph: Graph, size: int, weights: Floats) -> None:
        super().__init__(graph, size, weights)
        self._shape = graph.symmetry(size) or (1,)
        self._period = graph.period(size)
        self._known: dict[int, Floats] = {}
        self._moduli = np.ones(size)

    def advance(self) -> None:
        self._moduli = self._moduli * self._factor(self.round)
        self.round += 1

    def error(self) -> float:
        return float(self._moduli[1:].max(initial=0.0))  # the first belongs to the mean

    def second_singular_value(self, rounds: int) -> float:
        moduli = np.ones(self.size)
        for round in range(rounds):
            moduli = moduli * self._factor(round)
        return float(moduli[1:].max(initial=0.0))

    def messages(self, round: int) -> tuple[float, int]:
        sent = len(self.graph.out_peers(0, self.size, round))
        return sent, sent

    def _factor(self, round: int) -> Floats:
        key = round if self._period is None else round % self._period
        if key not in self._known:
            kernel = np.zeros(self.size)
            for peer, share in self.graph.gives(0, self.size, round):
                kernel[peer] = share
            kernel[0] = 1.0 - kernel.sum()
            factor = np.abs(np.fft.fftn(kernel.reshape(self._shape))).ravel()
            if self._period is None:
                return factor
            self._known[key] = factor
        return self._known[key]


class _Edges(_Product):
    """Rounds as arrays of edges; w is followed for every rank."""

    def __init__(self, graph: Graph, size: int, weights: Floats) -> None:
        super().__init__(graph, size, weights)
        self._rounds = SparseRounds(graph, size)

    def advance(self) -> None:
        one = self._rounds[self.round]
        self.mass = one.apply(self.mass[:, None])[:, 0]
        self.row_sums_are_one = bool(np.abs(one.apply(np.ones((self.size, 1))) - 1.0).max() < ROUNDING_ERROR)
        self.round += 1

    def messages(self, round: int) -> tuple[float, int]:
        one = self._rounds[round]
        busiest = max(one.forward.most, one.backward.most)
        return one.edges / self.size, busiest


class _Dense(_Edges):
    """The product itself."""

    def __init__(self, graph: Graph, size: int, weights: Floats) -> None:
        super().__init__(graph, size, weights)
        self._product = np.eye(size)
        self._worst = _WorstCase(size)

    def advance(self) -> None:
        self._product = self._rounds[self.round].apply(self._product)
        super().advance()

    def error(self) -> float:
        error = self._product * self.weights / self.mass[:, None] - self.weights / self.size
        if self.size <= 64:
            return float(np.linalg.norm(error, 2))
        return self._worst.norm(lambda z: error @ z, lambda y: error.T @ y, sweeps=8)

    def second_singular_value(self, rounds: int) -> float:
        return float(np.linalg.svd(window_matrix(self.graph, self.size, rounds), compute_uv=False)[1])


class _Probed(_Edges):
    """Vectors that go through all rounds, forwards and backwards."""

    every_round = False

    def __init__(self, graph: Graph, size: int, weights: Floats) -> None:
        super().__init__(graph, size, weights)
        self._worst = _WorstCase(size)

    def error(self) -> float:
        weights, mass = self.weights[:, None], self.mass[:, None]

        def forward(z: Floats) -> Floats:
            moved: Floats = weights * z
            error: Floats = self._forward(moved, self.round) / mass - moved.sum(axis=0) / self.size
            return error

        def backward(y: Floats) -> Floats:
            back: Floats = weights * (self._backward(y / mass, self.round) - y.sum(axis=0) / self.size)
            return back

        # After few rounds much is left of about the same size, and sweeps through them are cheap.
        heavy = max(self.messages(round)[0] for round in range(min(self.round, 2))) > MANY_MESSAGES
        sweeps = (
            max(1, 4 // self.round) if heavy else max(2 if self.round <= EVERY_ROUND_UNTIL else 1, 16 // self.round)
        )
        return self._worst.norm(forward, backward, sweeps=sweeps)

    def second_singular_value(self, rounds: int) -> float:
        worst = _WorstCase(self.size, np.ones((self.size, 1)))
        return worst.norm(lambda z: self._forward(z, rounds), lambda y: self._backward(y, rounds), place=1, sweeps=20)

    def _forward(self, x: Floats, rounds: int) -> Floats:
        for round in range(rounds):
            x = self._rounds[round].apply(x)
        return x

    def _backward(self, y: Floats, rounds: int) -> Floats:
        for round in reversed(range(rounds)):
            y = self._rounds[round].apply_transposed(y)
        return y


class _WorstCase:
    """Singular values of an operator by subspace iteration, begun where the last one, of a round before, ended."""

    def __init__(self, size: int, begin: Floats | None = None) -> None:
        self._random = np.random.default_rng(0)
        self._size = size
        self._found = np.empty((size, 0)) if begin is None else begin

    def norm(
        self, forward: Callable[[Floats], Floats], backward: Callable[[Floats], Floats], *, sweeps: int, place: int = 0
    ) -> float:
        """Return the singular value at a place, the largest being at 0."""
        fresh = self._random.normal(size=(self._size, PROBES - self._found.shape[1]))
        x = np.column_stack([self._found, fresh])
        for _ in range(sweeps):
            x, _ = np.linalg.qr(x)
            y = forward(x)
            squares, turn = np.linalg.eigh(y.T @ y)
            x = backward(y @ turn[:, ::-1])
        self._found = x[:, : PROBES * 3 // 4]  # the best; the rest starts anew
        return float(np.sqrt(max(0.0, squares[-1 - place])))
