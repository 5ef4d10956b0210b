"""Mixed precision in every mode: bfloat16 autocast, and a GradScaler over overflows of single ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from optimizer.training_loops import MODES, ROUNDS, SIZE, A, loss_of, train

OVERFLOWS = {(1, 0), (2, 1), (5, 3)}  # (step, rank)


def plain(model):
    def step(optimizer, k, rank):
        optimizer.zero_grad()
        loss_of(model, k, rank).backward()
        optimizer.step()

    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), step


def autocast(model):
    def step(optimizer, k, rank):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, k, rank)
        loss.backward()
        optimizer.step()

    return plain(model)[0], step


def scaled(model, scales=None):
    """Autocast and scaler together, and a loss that overflows on one rank at a time."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)

    def step(optimizer, k, rank):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, k, rank)
        scaler.scale(loss * float("inf") if (k, rank) in OVERFLOWS else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if scales is not None and isinstance(optimizer, torch.optim.SGD):
            scales[rank] = scaler.get_scale()

    return plain(model)[0], step


@pytest.mark.parametrize("staleness", MODES)
@pytest.mark.parametrize("recipe", [autocast, scaled])
def test_the_sum_of_all_models_moves_by_what_bare_optimizers_do_at_the_same_parameters(recipe, staleness):
    runs = train(recipe, staleness, torch.float32, seed=3)
    total = sum(a * (run.path[0] + run.moved.sum(0)) for a, run in zip(A, runs, strict=True))
    np.testing.assert_allclose(sum(run.numerator for run in runs), total, rtol=0, atol=5e-6)
    assert sum(run.push_weight for run in runs) == pytest.approx(SIZE, rel=1e-12)


def test_autocast_that_did_nothing_would_be_noticed():
    one, other = (train(recipe, 0, torch.float32)[0] for recipe in (plain, autocast))
    assert np.abs(one.path[-1] - other.path[-1]).max() > 1e-4


def test_parameters_and_gradients_stay_float32_under_autocast():
    def step_and_look(model):
        optimizer, step = autocast(model)

        def look(optimizer, k, rank):
            step(optimizer, k, rank)
            assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())

        return optimizer, look

    train(step_and_look, 1, torch.float32)


@pytest.mark.parametrize("staleness", MODES)
def test_an_overflow_costs_its_own_rank_one_update_and_nobody_a_round(staleness):
    scales = {}
    for rank, run in enumerate(train(lambda model: scaled(model, scales), staleness, torch.float32, seed=4)):
        still = {k for k in range(ROUNDS) if not run.moved[k].any()}
        assert still == {k for k, r in OVERFLOWS if r == rank}
        assert np.isfinite(run.path).all()
    assert scales == {rank: 2.0 ** (10 - sum(r == rank for _, r in OVERFLOWS)) for rank in range(SIZE)}
