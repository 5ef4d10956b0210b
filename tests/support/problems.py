"""A graph and a problem on which a wrong trajectory cannot pass for a right one."""

from __future__ import annotations

import numpy as np

from pushsum_opt.graphs import Graph

from .oracle import irregular_column_stochastic


class Irregular(Graph):
    """Irregular, time-varying, uneven shares: only column-stochastic."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def out_peers(self, rank, size, round):
        return tuple(irregular_column_stochastic(size, round, self._seed)[0][rank])

    def shares(self, rank, size, round):
        peers, matrix = irregular_column_stochastic(size, round, self._seed)
        return tuple(matrix[peer, rank] for peer in peers[rank])

    def period(self, size):
        return None

    def window(self, size):
        return 2

    def __repr__(self):
        return f"Irregular({self._seed})"


def problem(n: int, d: int = 7):
    """Return a quadratic problem in which every rank pulls elsewhere."""
    random = np.random.default_rng(n)
    centres, scales = random.normal(size=(n, d)), random.uniform(0.5, 2.0, size=(n, d))
    return random.normal(size=(n, d)), random.uniform(0.5, 3.0, size=n), lambda i, k, z: scales[i] * (z - centres[i])
