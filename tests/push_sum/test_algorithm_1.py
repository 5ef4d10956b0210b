"""The library's trajectories are those of the paper's Algorithm 1."""

from __future__ import annotations

import numpy as np
import pytest
from support.oracle import irregular_column_stochastic, stochastic_gradient_push
from support.problems import Irregular, problem

import pushsum_opt as ps

SIZES = [*range(1, 10), 33]
ROUNDS = 12


@pytest.mark.parametrize("size", SIZES)
def test_push_sum_on_numpy_follows_algorithm_1(size):
    z0, data_weights, gradient = problem(size)
    expected = stochastic_gradient_push(
        z0, data_weights, lambda k: irregular_column_stochastic(size, k, 3)[1], gradient, 0.1, ROUNDS
    )

    def rank(comm):
        z = z0[comm.rank].copy()
        path = []
        with ps.PushSum([z], graph=Irregular(3), data_weight=data_weights[comm.rank], comm=comm) as push_sum:
            for k in range(ROUNDS):
                path.append((z.copy(), push_sum.push_weight))
                with push_sum.local_step():
                    z -= 0.1 * gradient(comm.rank, k, z)
                push_sum.mix()
            path.append((z.copy(), push_sum.push_weight))
        return path

    paths = ps.testing.run(size, rank)
    for k in range(ROUNDS + 1):
        np.testing.assert_allclose([path[k][0] for path in paths], expected.z[k], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose([path[k][1] for path in paths], expected.w[k], rtol=1e-12)
        assert sum(path[k][1] for path in paths) == pytest.approx(size, rel=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_wrapped_sgd_follows_algorithm_1(size):
    torch = pytest.importorskip("torch")
    z0, data_weights, gradient = problem(size)
    z0[:] = z0[0]  # the wrapper starts every rank from rank 0's parameters
    expected = stochastic_gradient_push(
        z0, data_weights, lambda k: irregular_column_stochastic(size, k, 5)[1], gradient, 0.05, ROUNDS
    )

    def rank(comm):
        parameter = torch.nn.Parameter(torch.from_numpy(z0[0].copy()))
        sgd = torch.optim.SGD([parameter], lr=0.05)
        path = []
        with ps.PushSumOptimizer(sgd, graph=Irregular(5), data_weight=data_weights[comm.rank], comm=comm) as optimizer:
            for k in range(ROUNDS):
                parameter.grad = torch.from_numpy(gradient(comm.rank, k, parameter.detach().numpy()))
                optimizer.step()
                path.append((parameter.detach().numpy().copy(), optimizer.push_weight))
        return path

    paths = ps.testing.run(size, rank)
    for k in range(ROUNDS):
        np.testing.assert_allclose([path[k][0] for path in paths], expected.z[k + 1], rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose([path[k][1] for path in paths], expected.w[k + 1], rtol=1e-12)


def star(rank, size, round):
    """Rank 0 sends to all, and all to rank 0."""
    return range(1, size) if rank == 0 else (0,)


def random_directed(rank, size, round):
    """A fixed random directed graph that holds a ring."""
    others = [other for other in range(size) if other != rank]
    chosen = np.random.default_rng([11, rank]).choice(others, size=(rank % 3), replace=False)
    return sorted({(rank + 1) % size, *chosen.tolist()})


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("graph", [star, random_directed])
def test_irregular_graphs_reach_the_true_weighted_mean(graph, size):
    random = np.random.default_rng(size)
    values, weights = random.normal(size=(size, 5)), random.uniform(1, 4, size)
    mean = weights @ values / weights.sum()

    def rank(comm):
        z = values[comm.rank].copy()
        with ps.PushSum([z], graph=graph, data_weight=weights[comm.rank], comm=comm) as push_sum:
            for _ in range(150):
                push_sum.mix()
        return z

    for z in ps.testing.run(size, rank):
        np.testing.assert_allclose(z, mean, atol=1e-10)


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
def test_rounding_on_the_wire_keeps_the_mean_exact(size, dtype, wire):
    """Each round rounds every message; the weighted mean moves by float rounding only."""
    torch = pytest.importorskip("torch")
    start = np.random.default_rng(size).normal(size=(size, 300))
    if dtype == "float32":
        start = start.astype(np.float32).astype(np.float64)

    def rank(comm):
        z = torch.from_numpy(start[comm.rank].copy()).to(getattr(torch, dtype))
        totals = []
        with ps.PushSum([z], graph=Irregular(7), wire_dtype=wire, comm=comm) as push_sum:
            for _ in range(40):
                push_sum.mix()
                totals.append((push_sum.push_weight, push_sum.push_weight * z.double().numpy()))
        return totals

    totals = ps.testing.run(size, rank)
    bound = 1e-12 if dtype == "float64" else 1e-6
    for k in range(40):
        mass = sum(path[k][0] for path in totals)
        assert mass == pytest.approx(size, rel=1e-13)
        np.testing.assert_allclose(sum(path[k][1] for path in totals) / size, start.mean(0), atol=bound)
    spread = np.ptp([path[-1][1] / path[-1][0] for path in totals], axis=0).max()
    assert spread < 0.05, "the ranks still come together, to about what the wire resolves"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_parameters_keep_the_mean_over_many_rounds(dtype):
    torch = pytest.importorskip("torch")
    size, rounds = 5, 300
    start = torch.randn(size, 64, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    mean = start.double().mean(0)

    def rank(comm):
        z = start[comm.rank].clone()
        with ps.PushSum({"z": z}, graph=Irregular(2), comm=comm) as push_sum:
            for _ in range(rounds):
                push_sum.mix()
            residual = push_sum.state()["residuals"]["z"].double()
            return push_sum.push_weight * z.double() + residual, push_sum.push_weight

    results = ps.testing.run(size, rank)
    assert sum(weight for _, weight in results) == pytest.approx(size, rel=1e-12)
    drift = (sum(numerator for numerator, _ in results) / size - mean).abs().max().item()
    assert drift < 2e-5, "merging in half precision without a residual would drift by about 1e-2"


def test_half_precision_local_steps_move_the_numerator_by_the_full_step():
    """x moves by a dz where w differs from a: what the half-precision z cannot hold stays in the residual."""
    torch = pytest.importorskip("torch")
    size, rounds = 3, 40
    start = torch.linspace(-2, 2, 32).to(torch.bfloat16)

    def rank(comm):
        z = start.clone()
        moved = torch.zeros(32, dtype=torch.float64)
        with ps.PushSum({"z": z}, graph=Irregular(4), comm=comm) as push_sum:
            for _ in range(rounds):
                before = z.double()
                with push_sum.local_step():
                    z.sub_(0.01 * (comm.rank + 1))
                    moved += z.double() - before
                push_sum.mix()
            return push_sum.push_weight * z.double() + push_sum.state()["residuals"]["z"].double(), moved

    results = ps.testing.run(size, rank)
    total = sum(numerator for numerator, _ in results)
    expected = size * start.double() + sum(moved for _, moved in results)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-4)
