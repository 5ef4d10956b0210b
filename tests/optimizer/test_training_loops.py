"""What people do in a training loop works in every mode, unchanged: it is held against the paper's algorithms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optimizer.training_loops import BOUNDED, DATA_WEIGHTS, MODES, SIZE, A, expected, loss_of, train
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:LBFGS on")


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.01, **options})


# ---------------------------------------------------------------------- recipes: model -> (optimizer, step)


def plain(model):
    def step(optimizer, k, rank):
        optimizer.zero_grad()
        loss_of(model, k, rank).backward()
        optimizer.step()

    return sgd(model), step


def accumulation(model):
    def step(optimizer, k, rank):
        optimizer.zero_grad()
        for part in range(4):
            (loss_of(model, 4 * k + part, rank) / 4).backward()
        optimizer.step()

    return sgd(model), step


def clipping(model):
    def step(optimizer, k, rank):
        optimizer.zero_grad()
        loss_of(model, k, rank).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return sgd(model), step


def grad_scaler(model):
    """A loss overflows on rank 1 in step 2, and on rank 3 in step 5."""
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def step(optimizer, k, rank):
        optimizer.zero_grad()
        loss = loss_of(model, k, rank) * (float("inf") if (k, rank) in {(2, 1), (5, 3)} else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()

    return sgd(model), step


def closure(model):
    def step(optimizer, k, rank):
        def again():
            optimizer.zero_grad()
            loss = loss_of(model, k, rank)
            loss.backward()
            return loss

        assert optimizer.step(again).item() > 0

    return sgd(model, nesterov=True), step


def lbfgs(model):
    return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3), closure(model)[1]


def groups(model):
    """The head learns ten times as fast, and biases do not decay."""
    body, head = model[0], model[2]
    parts = [
        {"params": [body.weight], "lr": 0.02, "weight_decay": 0.1},
        {"params": [body.bias], "lr": 0.02},
        {"params": list(head.parameters()), "lr": 0.2, "momentum": 0.5},
    ]
    return torch.optim.SGD(parts, lr=1.0, momentum=0.9), plain(model)[1]


def skipping(model):
    """In step k, rank k mod n has no batch: it leaves the update out, and not the round."""

    def step(optimizer, k, rank):
        if k % SIZE != rank:
            plain(model)[1](optimizer, k, rank)
        elif hasattr(optimizer, "gossip"):
            optimizer.gossip()

    return sgd(model), step


def with_plain_step(optimizer_of):
    return lambda model: (optimizer_of(model), plain(model)[1])


IMPLEMENTATIONS = {
    f"{way} {maker.__name__}": with_plain_step(lambda model, maker=maker, way=way: maker(model, **{way: True}))
    for maker in (sgd, adamw)
    for way in ("foreach", "fused")
}
RECIPES = {
    recipe.__name__: recipe for recipe in (plain, accumulation, clipping, grad_scaler, closure, lbfgs, groups, skipping)
} | IMPLEMENTATIONS


# ---------------------------------------------------------------------- promises


@pytest.mark.parametrize("staleness", BOUNDED)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_rank_follows_the_papers_algorithm(recipe, staleness):
    oracle = expected(RECIPES[recipe], staleness)
    for rank, run in enumerate(train(RECIPES[recipe], staleness, seed=1)):
        np.testing.assert_allclose(run.path, oracle.z[:, rank], rtol=1e-7, atol=1e-7)  # LBFGS amplifies rounding


@pytest.mark.parametrize("staleness", MODES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_sum_of_all_models_moves_by_what_bare_optimizers_do_at_the_same_parameters(recipe, staleness):
    runs = train(RECIPES[recipe], staleness, seed=2)
    total = sum(a * (run.path[0] + run.moved.sum(0)) for a, run in zip(A, runs, strict=True))
    np.testing.assert_allclose(sum(run.numerator for run in runs), total, rtol=0, atol=1e-10)
    assert sum(run.push_weight for run in runs) == pytest.approx(SIZE, rel=1e-12)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in {"plain", "foreach sgd", "fused sgd"}])
def test_a_recipe_that_did_nothing_would_be_noticed(recipe):
    oracle, other = expected(RECIPES[recipe], 0), expected(plain, 0)
    assert np.abs(oracle.z[-1] - other.z[-1]).max() > 1e-3


def test_accumulating_is_the_same_as_one_large_batch():
    def large(model):
        def step(optimizer, k, rank):
            optimizer.zero_grad()
            torch.stack([loss_of(model, 4 * k + part, rank) for part in range(4)]).mean().backward()
            optimizer.step()

        return sgd(model), step

    for one, other in zip(train(accumulation, 1), train(large, 1), strict=True):
        np.testing.assert_allclose(one.path, other.path, rtol=1e-12, atol=1e-12)


def test_a_step_left_out_still_mixes():
    """Nothing is learnt on rank 0, and its parameters move."""

    def never_on_rank_0(model):
        def step(optimizer, k, rank):
            if rank:
                plain(model)[1](optimizer, k, rank)
            elif hasattr(optimizer, "gossip"):
                optimizer.gossip()

        return sgd(model), step

    run = train(never_on_rank_0, 0)[0]
    assert not run.moved.any()
    assert np.abs(run.path[-1] - run.path[0]).max() > 1e-2


def test_the_data_weights_of_these_tests_are_unequal():
    assert len(set(DATA_WEIGHTS)) == SIZE
