"""The paper's own Algorithm 2 sends every tau-th iteration: staleness tau with a graph that is silent in between."""

from __future__ import annotations

import numpy as np
import pytest
from support.oracle import irregular_column_stochastic, overlap_sgp
from support.problems import Irregular, problem

import pushsum_opt as ps
from pushsum_opt.graphs import Graph

pytestmark = pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.speed.SlowMixingWarning")
ROUNDS = 17


class NowAndThen(Graph):
    """Another graph in every ``every``-th round, and nobody in the others."""

    def __init__(self, inner: Graph, every: int) -> None:
        self.inner = inner
        self.every = every

    def out_peers(self, rank, size, round):
        return () if round % self.every else self.inner.out_peers(rank, size, round)

    def shares(self, rank, size, round):
        return () if round % self.every else self.inner.shares(rank, size, round)

    def period(self, size):
        period = self.inner.period(size)
        return None if period is None else period * self.every

    def window(self, size):
        return self.inner.window(size) * self.every

    def __repr__(self) -> str:
        return f"NowAndThen({self.inner!r}, {self.every})"


@pytest.mark.parametrize("tau", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_trajectories_follow_algorithm_2_to_the_letter(size, tau):
    z0, data_weights, gradient = problem(size)

    def rank(comm):
        z = z0[comm.rank].copy()
        graph = NowAndThen(Irregular(3), tau)
        path = []
        with ps.PushSum([z], graph=graph, staleness=tau, data_weight=data_weights[comm.rank], comm=comm) as push_sum:
            path.append((z.copy(), push_sum.push_weight))
            for k in range(ROUNDS):
                with push_sum.local_step():
                    z -= 0.1 * gradient(comm.rank, k, z)
                push_sum.mix()
                path.append((z.copy(), push_sum.push_weight))
        return path, push_sum.push_weight

    def matrices(k):
        return irregular_column_stochastic(size, k, 3)[1]

    expected = overlap_sgp(z0, data_weights, matrices, gradient, 0.1, ROUNDS, tau)
    results = ps.testing.run(size, rank, seed=tau)
    for k in range(ROUNDS + 1):
        np.testing.assert_allclose([path[k][0] for path, _ in results], expected.z[k], rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose([path[k][1] for path, _ in results], expected.w[k], rtol=1e-12)
    assert sum(weight for _, weight in results) == pytest.approx(size, rel=1e-12)
