"""Three ways to follow a product of rounds: by its spectrum, as a dense matrix, and by probe vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from ..graphs import Graph
from ..graphs.sparse import SparseRounds
from .matrices import Floats, window_matrix

__all__ = ["EVERY_ROUND_UNTIL", "ROUNDING_ERROR", "Product", "product_of_rounds"]

ROUNDING_ERROR = 1e-12
"""An error below this is rounding alone: the average is exact."""
DENSE_RANKS = 512
"""Up to so many ranks the product of the rounds is formed as a dense matrix."""
EVERY_ROUND_UNTIL = 32
"""Up to this round the error is computed after every round; beyond, after rounds that grow by an eighth."""
PROBES = 8
MANY_MESSAGES = 16
"""Per rank and round: with more than these, fewer sweeps are made."""


def product_of_rounds(graph: Graph, size: int, weights: Floats | None = None) -> Product:
    """Return the product of no rounds yet: the cheapest kind that follows this graph.

    Args:
        weights: a of every rank; None: 1.
    """
    if weights is None:
        weights = np.ones(size)
    if (weights == 1.0).all() and graph.symmetry(size) is not None:
        return _Spectrum(graph, size, weights)
    return (_Dense if size <= DENSE_RANKS else _Probed)(graph, size, weights)


class Product(ABC):
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


class _Spectrum(Product):
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


class _Edges(Product):
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
