"""Two optimizers on one communicator: generator and discriminator, each with a graph and a staleness of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from optimizer.common import batch
from optimizer.training_loops import fill, vector
from support.oracle import irregular_column_stochastic
from support.problems import Irregular
from torch import nn
from torch.nn.functional import softplus

import pushsum_opt as ps

SIZE, ROUNDS = 3, 7
NETWORKS = {"discriminator": (6, 1, 3), "generator": (4, 6, 4)}  # inputs, outputs, seed of its graph; in turn


def networks() -> dict[str, nn.Module]:
    made = {}
    for name, (inputs, outputs, seed) in NETWORKS.items():
        made[name] = nn.Linear(inputs, outputs).double()
        fill(made[name], np.random.default_rng(seed).normal(size=inputs * outputs + outputs))
    return made


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "generator":
        return torch.optim.Adam(model.parameters(), lr=0.02)
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)


def take_turn(name, models, optimizer, k, rank):
    """The usual two losses: each network gets gradients from the other's parameters of the moment."""
    real = batch(k, rank)[0].double()
    fake = models["generator"](batch(100 + k, rank)[0][:, :4].double())
    if name == "discriminator":
        loss = softplus(-models[name](real)).mean() + softplus(models[name](fake.detach())).mean()
    else:
        loss = softplus(-models["discriminator"](fake)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# ---------------------------------------------------------------------- the paper's form, one round at a time


@dataclass
class Mass:
    """x and w of all ranks for one network, and what is in flight: Algorithms 1 and 2, all data weights 1."""

    x: np.ndarray
    seed: int
    staleness: int
    w: np.ndarray = field(default_factory=lambda: np.ones(SIZE))
    in_flight: list = field(default_factory=list)

    @property
    def z(self):
        return self.x / self.w[:, None]

    def round(self, k, moved):
        self.x = self.x + moved
        p = irregular_column_stochastic(SIZE, k, self.seed)[1]
        given = p - np.diag(np.diag(p))
        if k < self.staleness:
            degree, total = (given > 0).sum(0), given.sum(0)
            budget = degree / (1 + degree + self.staleness * degree)
            given = given * np.where(total > 0, budget / np.where(total > 0, total, 1) / self.w, 0.0)
        self.in_flight.append((given @ self.x, given @ self.w))
        kept = 1 - given.sum(0)
        self.x, self.w = kept[:, None] * self.x, kept * self.w
        if k >= self.staleness:
            x, w = self.in_flight.pop(0)
            self.x, self.w = self.x + x, self.w + w


def simulated(staleness):
    models = [networks() for _ in range(SIZE)]
    optimizers = [{name: optimizer_of(name, model) for name, model in one.items()} for one in models]
    masses = {
        name: Mass(np.stack([vector(one[name]) for one in models]), seed, staleness[name])
        for name, (*_, seed) in NETWORKS.items()
    }
    for k in range(ROUNDS):
        for name, mass in masses.items():
            before = mass.z
            for rank, one in enumerate(models):
                take_turn(name, one, optimizers[rank][name], k, rank)
            mass.round(k, np.stack([vector(one[name]) for one in models]) - before)
            for z, one in zip(mass.z, models, strict=True):
                fill(one[name], z)
    return {name: mass.z for name, mass in masses.items()}


# ---------------------------------------------------------------------- wrapped


def trained(comm, staleness):
    """Return, for each network: z after training, w z and w after close(), and by how much bare optimizers moved it."""
    models, twins = networks(), networks()
    wrapped = {
        name: ps.PushSumOptimizer(
            optimizer_of(name, model), model, graph=Irregular(NETWORKS[name][2]), staleness=staleness[name], comm=comm
        )
        for name, model in models.items()
    }
    bare = {name: optimizer_of(name, twin) for name, twin in twins.items()}
    moved = dict.fromkeys(NETWORKS, 0.0)
    for k in range(ROUNDS):
        for name in NETWORKS:
            for other, twin in twins.items():
                fill(twin, vector(models[other]))
            take_turn(name, twins, bare[name], k, comm.rank)
            moved[name] = moved[name] + vector(twins[name]) - vector(models[name])
            take_turn(name, models, wrapped[name], k, comm.rank)
    ends = {name: vector(model) for name, model in models.items()}
    for optimizer in wrapped.values():
        optimizer.close()
    weights = {name: optimizer.push_weight for name, optimizer in wrapped.items()}
    return {name: (ends[name], weights[name] * vector(models[name]), weights[name], moved[name]) for name in NETWORKS}


def pair(discriminator, generator):
    return {"discriminator": discriminator, "generator": generator}


@pytest.mark.parametrize("staleness", [pair(0, 0), pair(1, 1), pair(0, 2), pair(2, 1)], ids=str)
def test_both_networks_follow_the_papers_algorithm(staleness):
    oracle = simulated(staleness)
    for rank, found in enumerate(ps.testing.run(SIZE, lambda comm: trained(comm, staleness), seed=8)):
        for name in NETWORKS:
            np.testing.assert_allclose(found[name][0], oracle[name][rank], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "staleness", [pair("unbounded", "unbounded"), pair("unbounded", 0), pair(1, "unbounded")], ids=str
)
def test_neither_network_loses_mass_to_the_other(staleness):
    results = ps.testing.run(SIZE, lambda comm: trained(comm, staleness), seed=9)
    start = networks()
    for name in NETWORKS:
        _, numerators, weights, moved = zip(*[found[name] for found in results], strict=True)
        np.testing.assert_allclose(sum(numerators), SIZE * vector(start[name]) + sum(moved), rtol=0, atol=1e-11)
        assert sum(weights) == pytest.approx(SIZE, rel=1e-12)


def test_the_two_networks_depend_on_each_other():
    """Otherwise gradients through a stale partner would go unnoticed: a mode of the one changes the other's path."""
    one, other = simulated(pair(0, 0)), simulated(pair(0, 2))
    assert np.abs(one["discriminator"] - other["discriminator"]).max() > 1e-4
