"""Every family through the real optimizer, with lr = 0: a round is the mixing matrix, and the error falls with it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from graphs.every import SIZES, every_graph

import pushsum_opt as ps
from pushsum_opt.graphs import Graph
from pushsum_opt.mixing import mixing_matrix

QUICK = [1, 2, 3, 4, 5, 7, 8, 9]
LARGER = sorted({size for size in SIZES if size <= 64} - {*QUICK, 16, 33})
KINDS = [*dict.fromkeys(type(graph) for graph in ps.graphs.families(16))]
TURNS = 5
pytestmark = pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.SlowMixingWarning")


@pytest.fixture(autouse=True)
def _one_answer_for_all_ranks(monkeypatch):
    """Check and digest a graph once: every rank does, which as threads that share it takes most of the time here."""
    answers, one_at_a_time = {}, threading.RLock()

    def once(plain):
        def ask(graph, size):
            with one_at_a_time:
                if (graph, size, plain) not in answers:
                    answers[graph, size, plain] = plain(graph, size)
                return answers[graph, size, plain]

        return ask

    for name in ("check", "fingerprint"):
        monkeypatch.setattr(Graph, name, once(getattr(Graph, name)))


def assert_follows_the_matrices(graph, size, rounds):
    start = np.random.default_rng(size).normal(size=(size, 6))
    weights = 1.0 + np.arange(size) % 3

    def rank(comm):
        parameter = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
        sgd = torch.optim.SGD([parameter], lr=0.0)
        with ps.PushSumOptimizer(sgd, graph=graph, data_weight=weights[comm.rank], comm=comm) as optimizer:
            parameter.data.copy_(torch.from_numpy(start[comm.rank]))
            path = []
            for _ in range(rounds):
                optimizer.step()
                path.append((optimizer.push_weight, parameter.detach().numpy().copy()))
        return path

    results = ps.testing.run(size, rank)
    w = size * weights / weights.sum()
    x = start * w[:, None]
    for k in range(rounds):
        matrix = mixing_matrix(graph, size, k)
        x, w = matrix @ x, matrix @ w
        np.testing.assert_allclose([path[k][0] for path in results], w, rtol=1e-11)
        np.testing.assert_allclose([path[k][1] for path in results], x / w[:, None], rtol=1e-10, atol=1e-12)
        assert sum(path[k][0] for path in results) == pytest.approx(size, rel=1e-13)


@pytest.mark.parametrize("size", QUICK)
def test_every_round_of_every_family_is_its_mixing_matrix(size):
    for graph in every_graph(size):
        assert_follows_the_matrices(graph, size, 4)


def at_larger_sizes():
    """Return (size, graph): every family at 16 and 33, and each at every fifth of the others, odd ones among them."""
    for size in (16, 33, *LARGER):
        for graph in ps.graphs.families(size):
            if size in (16, 33) or (1 + LARGER.index(size) + KINDS.index(type(graph))) % TURNS == 0:
                yield size, graph


@pytest.mark.slow
@pytest.mark.parametrize(("size", "graph"), [*at_larger_sizes()], ids=str)
def test_larger_sizes_follow_their_matrices_too(size, graph):
    assert_follows_the_matrices(graph, size, 2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_family_is_seen_at_several_larger_sizes_an_odd_one_among_them_where_it_has_any(kind):
    there = {size for size, graph in at_larger_sizes() if type(graph) is kind}
    defined = {size for size in SIZES for graph in ps.graphs.families(size) if type(graph) is kind}
    assert len(there) >= 2
    assert any(size % 2 for size in there) or not any(size % 2 for size in defined if size > 9)
