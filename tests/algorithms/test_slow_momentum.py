"""Slow momentum against the paper's pseudocode in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optimizer.common import batch, network, values

import pushsum_opt as ps
from pushsum_opt.algorithms import SlowMomentum
from pushsum_opt.errors import ConfigurationError

TARGETS = np.array([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]])
RATES = [0.1] * 5 + [0.05] * 7  # the learning rate may change


def slowmo(rounds, every, beta, alpha):
    """Algorithm 1 of Wang et al. (2020), local SGD with a complete graph inside; x of every round."""
    y, u = np.zeros(2), np.zeros(2)
    x = np.zeros((3, 2))
    history = []
    for k in range(rounds):
        x = x - RATES[k] * (x - TARGETS)
        x = np.broadcast_to(x.mean(0), x.shape)
        if (k + 1) % every == 0:
            u = beta * u + (y - x[0]) / RATES[k]
            y = y - alpha * RATES[k] * u
            x = np.broadcast_to(y, x.shape)
        history.append(x)
    return history


@pytest.mark.parametrize(("beta", "alpha"), [(0.0, 1.0), (0.6, 1.0), (0.4, 0.7)])
def test_rounds_equal_the_papers(beta, alpha):
    def rank(comm):
        z = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.1)
        algorithm = SlowMomentum(4, momentum=beta, lr=alpha)
        seen = []
        with ps.PushSumOptimizer(inner, graph=ps.graphs.Complete(), algorithm=algorithm, comm=comm) as optimizer:
            for k in range(12):
                optimizer.param_groups[0]["lr"] = RATES[k]
                z.grad = z.detach() - torch.from_numpy(TARGETS[comm.rank])
                optimizer.step()
                seen.append(z.detach().numpy().copy())
        return seen

    expected = slowmo(12, 4, beta, alpha)
    for i, seen in enumerate(ps.testing.run(3, rank)):
        np.testing.assert_allclose(seen, [x[i] for x in expected], atol=1e-13)


@pytest.mark.parametrize("staleness", [0, 2])
def test_all_ranks_are_equal_after_a_slow_step_and_the_mass_is_there(staleness):
    def rank(comm):
        model = network()
        inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        options = {"staleness": staleness, "algorithm": SlowMomentum(5), "comm": comm}
        with ps.PushSumOptimizer(inner, model, **options) as optimizer:
            for k in range(15):
                inputs, targets = batch(k, comm.rank)
                optimizer.zero_grad()
                (model(inputs) - targets).square().mean().backward()
                optimizer.step()
            return ps.consensus_distance(optimizer), optimizer.push_weight

    assert ps.testing.run(3, rank) == [(0.0, 1.0)] * 3


def test_saving_and_loading_goes_on_with_the_same_bits():
    def rank(comm):
        def make(model):
            inner = torch.optim.SGD(model.parameters(), lr=0.05)
            return ps.PushSumOptimizer(inner, model, algorithm=SlowMomentum(4), comm=comm)

        def train(optimizer, model, begin, end):
            for k in range(begin, end):
                inputs, targets = batch(k, comm.rank)
                optimizer.zero_grad()
                (model(inputs) - targets).square().mean().backward()
                optimizer.step()

        straight, saved = network(), network()
        first, second = make(straight), make(saved)
        train(first, straight, 0, 16)
        train(second, saved, 0, 6)
        resumed = network()
        third = make(resumed)
        resumed.load_state_dict(saved.state_dict())
        third.load_state_dict(second.state_dict())
        train(third, resumed, 6, 16)
        for optimizer in (first, second, third):
            optimizer.close()
        return all(map(torch.equal, values(straight), values(resumed)))

    assert ps.testing.run(2, rank) == [True, True]


def test_arguments_that_cannot_be_used_are_refused():
    for bad in [{"every": 0}, {"every": 4, "momentum": 1.0}, {"every": 4, "momentum": -0.1}, {"every": 4, "lr": 0.0}]:
        with pytest.raises(ConfigurationError):
            SlowMomentum(**bad)
