"""NoLoCo and DiLoCo against their rules in numpy, and what else an outer step promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optimizer.common import batch, network, values
from support.outer_steps import diloco, noloco, pairs

import pushsum_opt as ps
from pushsum_opt.algorithms import DiLoCo, NoLoCo
from pushsum_opt.errors import ConfigurationError, NonFiniteError
from pushsum_opt.testing import Faults, Moment, RankErrors

TARGETS = np.random.default_rng(5).normal(size=(7, 3))
SIZES = [1, 2, 3, 5, 7]


def trajectory(comm, algorithm, outer_steps, start=0.0, dtype=torch.float64, **options):
    """Train on this rank's target; return what it holds after each outer step."""
    z = torch.full((3,), start, dtype=dtype, requires_grad=True)
    inner = torch.optim.SGD([z], lr=0.1)
    seen = []
    with ps.PushSumOptimizer(inner, algorithm=algorithm, comm=comm, **options) as optimizer:
        for k in range(outer_steps * algorithm.local_steps):
            z.grad = (z.detach() - torch.from_numpy(TARGETS[comm.rank])).to(dtype)
            optimizer.step()
            assert optimizer.round == (k + 1) // algorithm.local_steps
            if (k + 1) % algorithm.local_steps == 0:
                seen.append(z.detach().numpy().copy())
    return seen


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("alpha", "beta", "gamma"), [(0.5, 0.7, 0.75), (0.5, 0.7, 0.7), (0.0, 1.0, 1.0), (0.9, 0.7, 0.19), (0.3, 0.4, 1.5)]
)
def test_noloco_is_the_rule_with_two_means_over_random_pairs(size, alpha, beta, gamma):
    def rank(comm):
        return trajectory(comm, NoLoCo(4, beta, alpha, gamma, seed=3), 9)

    expected = noloco(TARGETS[:size], 9, 4, alpha, beta, gamma, seed=3)
    for i, seen in enumerate(ps.testing.run(size, rank)):
        np.testing.assert_allclose(seen, [phi[i] for phi in expected], rtol=1e-11, atol=1e-12, err_msg=f"rank {i}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("lr", "mu"), [(0.7, 0.9), (1.0, 0.0), (0.4, 0.5)])
def test_diloco_is_the_papers_algorithm_with_nesterov_outside(size, lr, mu):
    weights = np.arange(1.0, size + 1)

    def rank(comm):
        return trajectory(comm, DiLoCo(4, lr, mu), 6, data_weight=weights[comm.rank])

    expected = diloco(TARGETS[:size], 6, 4, lr, mu, data_weights=weights)
    for seen in ps.testing.run(size, rank):
        np.testing.assert_allclose(seen, expected, atol=1e-13)


def test_nesterov_outside_is_what_torch_writes():
    phi = torch.ones(3, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.SGD([phi], lr=0.7, momentum=0.9, nesterov=True)
    seen = []
    for _ in range(5):
        theta = phi.detach().clone()
        for _ in range(4):
            theta -= 0.1 * (theta - torch.from_numpy(TARGETS[0]))
        phi.grad = phi.detach() - theta
        outer.step()
        seen.append(phi.detach().numpy().copy())
    own = ps.testing.run(1, lambda comm: trajectory(comm, DiLoCo(4), 5, start=1.0))[0]
    np.testing.assert_allclose(own, seen, atol=1e-14)


def test_a_value_of_pull_that_is_not_given_is_the_outer_rate_or_what_keeps_ranks_closest_if_that_is_less():
    """The mean square of the disagreement under noise of size 1 in every outer step, many ranks, pairs at random."""

    def disagreement(alpha, gamma):
        rows = np.array([[1 - gamma, 2 * alpha, 0], [-gamma / 2, alpha, 0], [gamma**2 / 2, -alpha * gamma, alpha**2]])
        rows[:2] += rows[2]  # the square of delta enters the other two
        return np.linalg.solve(np.eye(3) - rows, np.ones(3))[0]

    for alpha in (0.0, 0.3, 0.5, 0.8, 0.9):
        gamma = NoLoCo(outer_lr=2.0, outer_momentum=alpha).pull
        least = disagreement(alpha, gamma)
        assert least > 0
        assert all(disagreement(alpha, gamma * factor) > least for factor in (0.8, 0.95, 1.05, 1.2))
    assert NoLoCo(outer_lr=0.6).pull == 0.6


# ---------------------------------------------------------------------- the wire


@pytest.mark.parametrize("wire", [None, "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [2, 5])
def test_noloco_sends_one_model_per_outer_step_and_rounding_on_the_wire_leaves_the_mean_exact(size, wire):
    def rank(comm):
        z = torch.linspace(-1, 1, 1000, dtype=torch.float64, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.1)
        algorithm = NoLoCo(3, outer_momentum=0.5)
        with ps.PushSumOptimizer(inner, algorithm=algorithm, wire_dtype=wire, comm=comm) as optimizer:
            for _ in range(12):  # gradients that do not depend on z: so the mean cannot depend on rounding
                z.grad = torch.full_like(z, 1.0 + comm.rank)
                optimizer.step()
            sent = optimizer.stats()["bytes_sent"]
        return z.detach().numpy(), sent

    found = ps.testing.run(size, rank)
    start = np.linspace(-1, 1, 1000)
    delta, phi = 0.0, 0.0  # of the mean over ranks, which the pull does not move
    for _ in range(4):
        delta = 0.5 * delta + 0.7 * (-0.1 * 3 * np.mean(np.arange(size) + 1.0))
        phi += delta
    np.testing.assert_allclose(np.mean([z for z, _ in found], 0), start + phi, rtol=1e-12, atol=1e-12)
    width = {None: 8, "float32": 4, "float16": 2, "bfloat16": 2}[wire]
    for i, (_, sent) in enumerate(found):
        messages = sum(len(pairs(size, t)[i]) - 1 for t in range(4))
        assert messages * 1000 * width <= sent < messages * (1000 * width + 500)


def test_diloco_adds_in_float32_where_the_wire_is_narrow():
    def rank(comm, wire):
        return trajectory(comm, DiLoCo(4), 6, wire_dtype=wire)

    exact = diloco(TARGETS[:3], 6, 4, 0.7, 0.9)
    wide = ps.testing.run(3, lambda comm: rank(comm, "float64"))
    narrow = ps.testing.run(3, lambda comm: rank(comm, "bfloat16"))
    np.testing.assert_allclose(wide[0], exact, atol=1e-13)
    np.testing.assert_allclose(narrow[0], exact, atol=1e-6)
    assert not np.array_equal(narrow[0], wide[0]), "the sum was in float64"
    for other in narrow[1:]:
        np.testing.assert_array_equal(other, narrow[0])


# ---------------------------------------------------------------------- what may happen meanwhile


@pytest.mark.parametrize("make", [lambda: NoLoCo(3, outer_momentum=0.5), lambda: DiLoCo(3)])
def test_a_graph_that_is_given_is_used_and_adamw_keeps_its_state(make):
    def rank(comm):
        model = network()
        inner = torch.optim.AdamW(model.parameters(), lr=0.01)
        options = {"graph": ps.graphs.Ring(), "algorithm": make(), "comm": comm}
        with ps.PushSumOptimizer(inner, model, **options) as optimizer:
            assert optimizer.push_sum.graph == ps.graphs.Ring() or "Ring" in repr(optimizer.push_sum.graph)
            for k in range(7):
                inputs, targets = batch(k, comm.rank)
                optimizer.zero_grad()
                (model(inputs) - targets).square().mean().backward()
                optimizer.step()
            steps = {float(state["step"]) for state in inner.state.values()}
            return steps, optimizer.round, all(torch.isfinite(one).all() for one in values(model))

    assert ps.testing.run(3, rank) == [({7.0}, 2, True)] * 3


def test_after_an_error_in_the_exchange_parameters_are_what_the_inner_steps_made():
    def rank(comm):
        z = torch.zeros(3, requires_grad=True)
        optimizer = ps.PushSumOptimizer(torch.optim.SGD([z], lr=1.0), algorithm=NoLoCo(2), comm=comm)
        for _ in range(2):
            z.grad = torch.full((3,), float("nan") if comm.rank == 1 else -1.0)
            try:
                optimizer.step()
            except Exception:
                return z.detach().clone()
        return None

    found = ps.testing.run(2, rank)
    assert found[0].tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(RankErrors) as failure:
        ps.testing.run(2, lambda comm: trajectory(comm, NoLoCo(2), 2, start=float("nan")))
    assert any(isinstance(error, NonFiniteError) for error in failure.value.errors.values())


@pytest.mark.parametrize("count", [5, 12])
@pytest.mark.parametrize(
    "make", [lambda: NoLoCo(3, outer_momentum=0.5), lambda: DiLoCo(3, outer_momentum=0.5)], ids=["noloco", "diloco"]
)
def test_survivors_of_a_loss_go_on_with_outer_steps(make, count):
    def rank(comm):
        z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.1)
        me = comm.rank
        optimizer = ps.PushSumOptimizer(inner, algorithm=make(), on_loss="continue", timeout=20, comm=comm)
        for _ in range(120):
            z.grad = z.detach() - torch.from_numpy(TARGETS[me])
            optimizer.step()
        said = optimizer.members, optimizer.round, ps.consensus_distance(optimizer)
        with optimizer.averaged():
            mean = z.detach().numpy().copy()
        optimizer.close()
        return *said, mean

    found = ps.testing.run(4, rank, faults=Faults({2: Moment(call="step()", count=count)}), timeout=60)
    survivors = [one for one in found if one is not None]
    assert len(survivors) == 3
    for members, rounds, distance, mean in survivors:
        assert members == (0, 1, 3)
        assert rounds == 40
        assert distance < 2.0
        np.testing.assert_allclose(mean, TARGETS[[0, 1, 3]].mean(0), atol=0.35)


def test_ranks_with_different_numbers_of_batches_meet_for_outer_steps():
    def rank(comm):
        z = torch.zeros(3, requires_grad=True)
        with ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.1), algorithm=NoLoCo(3), comm=comm) as optimizer:
            for _ in range(2):
                with optimizer.join():
                    for _ in range(4 + 9 * comm.rank):
                        z.grad = torch.ones(3)
                        optimizer.step()
            return optimizer.round

    rounds = ps.testing.run(3, rank, timeout=60)
    assert len(set(rounds)) == 1
    assert rounds[0] >= 2 * 7


def test_parameters_that_come_later_start_where_they_are():
    def rank(comm):
        first = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        late = torch.full((2,), 5.0, dtype=torch.float64, requires_grad=True)
        algorithm = NoLoCo(2, outer_momentum=0.0, outer_lr=1.0)
        with ps.PushSumOptimizer(torch.optim.SGD([first], lr=1.0), algorithm=algorithm, comm=comm) as optimizer:
            for k in range(4):
                if k == 2:
                    optimizer.add_param_group({"params": [late], "lr": 0.0})
                for z in (first, late):
                    z.grad = torch.full((2,), -1.0 - comm.rank, dtype=torch.float64)
                optimizer.step()
            return first[0].item(), late[0].item(), len(optimizer.state_dict()["push_sum"]["algorithm"]["before"])

    assert ps.testing.run(2, rank) == [(6.0, 5.0, 2)] * 2


# ---------------------------------------------------------------------- arguments


def test_arguments_that_cannot_be_used_are_refused_by_name():
    wrong = [
        ("every", 0), ("every", True), ("every", 2.5), ("outer_lr", 0.0), ("outer_lr", float("nan")),
        ("outer_lr", "much"), ("outer_momentum", 1.0), ("outer_momentum", -0.1),
    ]  # fmt: skip
    for kind in (NoLoCo, DiLoCo):
        for name, value in wrong:
            with pytest.raises(ConfigurationError, match=f"{name}="):
                kind(**{name: value})
    for name, value in [("pull", 0.0), ("pull", -1.0), ("seed", 1.5), ("seed", None)]:
        with pytest.raises(ConfigurationError, match=f"{name}="):
            NoLoCo(**{name: value})


@pytest.mark.parametrize("make", [NoLoCo, DiLoCo])
def test_staleness_and_gossip_every_are_refused_with_the_reason(make):
    def rank(comm):
        inner = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        for staleness in (1, 2, "unbounded"):
            with pytest.raises(ConfigurationError, match="from which the slow weights have moved on"):
                ps.PushSumOptimizer(inner, staleness=staleness, algorithm=make(), comm=comm)
        with pytest.raises(ConfigurationError, match="its `every` counts local steps already"):
            ps.PushSumOptimizer(inner, gossip_every=2, algorithm=make(), comm=comm)

    ps.testing.run(1, rank)


def test_ranks_with_different_pairs_are_told():
    def rank(comm):
        inner = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        ps.PushSumOptimizer(inner, algorithm=NoLoCo(seed=comm.rank), comm=comm)

    with pytest.raises(RankErrors, match=r"seed=0"):
        ps.testing.run(2, rank)
