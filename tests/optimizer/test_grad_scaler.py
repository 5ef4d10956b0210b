"""Under a GradScaler: an inf on one rank skips that rank's update and never the round."""

from __future__ import annotations

import pytest
import torch
from optimizer.common import FIRST_ORDER, KINDS, alone, batch, bits, flat, network, ring, star, values
from torch import nn

import pushsum_opt as ps

KINDS = KINDS | {
    "fused SGD": lambda p, **kw: torch.optim.SGD(p, **{"lr": 0.1, "momentum": 0.9, "fused": True, **kw}),
    "Adagrad": lambda p, **kw: torch.optim.Adagrad(p, **{"lr": 0.1, **kw}),
}
first_order = pytest.mark.parametrize("kind", [*FIRST_ORDER, "fused SGD", "Adagrad"])
WAYS = ["plain", "unscaled by the user", "clipped after unscaling"]
every_way = pytest.mark.parametrize("way", WAYS)


def scaler_of(enabled=True, scale=256.0, growth_interval=3):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval, enabled=enabled)


def scaled_step(scaler, optimizer, model, step, rank=0, poison=None, way="plain"):
    inputs, targets = batch(step, rank)
    optimizer.zero_grad()
    scaler.scale((model(inputs) - targets).square().mean()).backward()
    if poison is not None:
        list(model.parameters())[-1].grad.view(-1)[-1] = poison
    if way != "plain":
        scaler.unscale_(optimizer)
    if way == "clipped after unscaling":
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    result = scaler.step(optimizer)
    scaler.update()
    return result


@first_order
@every_way
@pytest.mark.parametrize("enabled", [True, False])
def test_on_one_rank_it_has_the_bits_of_the_bare_optimizer_under_the_same_scaler(kind, way, enabled):
    def rank(comm):
        bare_model, model = network(), network()
        bare = KINDS[kind](bare_model.parameters())
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, comm=comm)
        one, other = scaler_of(enabled), scaler_of(enabled)
        for step in range(8):
            poison = {2: float("inf"), 5: float("nan")}.get(step) if enabled else None
            scaled_step(one, bare, bare_model, step, 0, poison, way)
            scaled_step(other, wrapped, model, step, 0, poison, way)
            assert one.get_scale() == other.get_scale()
        assert bits(values(bare_model)) == bits(values(model))
        assert flat(bare.state_dict()["state"]) == flat(wrapped.optimizer.state_dict()["state"])
        assert wrapped.round == 8
        for optimizer in (wrapped, wrapped.optimizer):
            assert not hasattr(optimizer, "found_inf")
            assert not hasattr(optimizer, "grad_scale")

    alone(rank)


@first_order
@every_way
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_inf_gradient_skips_update_but_not_gossip(kind, way, poison):
    """In the second step rank 1's gradient is not finite: its parameters move by the gossip and by nothing else."""

    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=ring, comm=comm) as wrapped:
            scaler = scaler_of(scale=4.0, growth_interval=100)
            scaled_step(scaler, wrapped, model, 0, comm.rank, way=way)
            before, state = values(model), flat(wrapped.optimizer.state_dict()["state"])
            posted = []
            mix = wrapped.push_sum.mix
            wrapped.push_sum.mix = lambda: (posted.append(values(model)), mix())
            scaled_step(scaler, wrapped, model, 1, comm.rank, poison if comm.rank == 1 else None, way)
            moved = bits(before) != bits(posted[0])
            kept = state == flat(wrapped.optimizer.state_dict()["state"])
            for step in range(2, 4):
                scaled_step(scaler, wrapped, model, step, comm.rank, way=way)
            finite = all(torch.isfinite(value).all() for value in values(model))
            return moved, kept, wrapped.round, wrapped.push_weight, scaler.get_scale(), finite

    results = ps.testing.run(3, rank)
    assert [moved for moved, *_ in results] == [True, False, True]
    assert [kept for _, kept, *_ in results] == [False, True, False]
    assert [rounds for _, _, rounds, *_ in results] == [4, 4, 4]
    assert sum(weight for *_, weight, _, _ in results) == pytest.approx(3, rel=1e-13)
    assert [scale for *_, scale, _ in results] == [4.0, 2.0, 4.0]
    assert all(finite for *_, finite in results)


@first_order
@pytest.mark.parametrize("way", WAYS[:2])  # the third would clip without a scaler, too, which is not its subject
def test_a_scaler_changes_nothing_of_a_run_with_unequal_push_weights(kind, way):
    """Scales are powers of two and nothing overflows, so scaling and unscaling are exact."""

    def rank(comm, enabled):
        model = network()
        options = {"graph": star, "data_weight": 1.0 + comm.rank, "comm": comm}
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, **options) as wrapped:
            scaler = scaler_of(enabled)
            for step in range(5):
                scaled_step(scaler, wrapped, model, step, comm.rank, way=way)
            return bits(values(model)), wrapped.push_weight

    assert ps.testing.run(3, lambda comm: rank(comm, True)) == ps.testing.run(3, lambda comm: rank(comm, False))


@first_order
def test_a_step_without_any_gradient_on_one_rank_still_gossips(kind):
    """found_inf is the int 0 then."""

    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=ring, comm=comm) as wrapped:
            scaler = scaler_of()
            scaled_step(scaler, wrapped, model, 0, comm.rank)
            wrapped.zero_grad()
            scaler.scale(torch.ones(()))
            seen = []
            wrapped.register_step_pre_hook(lambda *_: seen.append(wrapped.found_inf))
            if comm.rank == 1:
                scaler.step(wrapped)
                assert seen == [0]
                assert isinstance(seen[0], int)
            else:
                scaled_step(scaler, wrapped, model, 1, comm.rank)
            return wrapped.round, wrapped.push_weight

    results = ps.testing.run(3, rank)
    assert [rounds for rounds, _ in results] == [2, 2, 2]
    assert sum(weight for _, weight in results) == pytest.approx(3)


def test_sparse_gradients_are_unscaled():
    def rank(comm):
        results = []
        for wraps in (False, True):
            table = nn.Embedding(5, 3, sparse=True)
            with torch.no_grad():
                table.weight.copy_(torch.arange(15.0).reshape(5, 3))
            optimizer = torch.optim.SGD(table.parameters(), lr=0.5)
            scaler = scaler_of()
            if wraps:
                optimizer = ps.PushSumOptimizer(optimizer, table, comm=comm)
            scaler.scale(table(torch.tensor([1, 3, 3])).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            results.append(values(table))
        assert bits(results[0]) == bits(results[1])

    alone(rank)


def test_two_optimizers_share_one_scaler():
    def rank(comm):
        models = [network(1), network(2)]
        wrapped = [ps.PushSumOptimizer(KINDS["SGD"](m.parameters()), m, graph=ring, comm=comm) for m in models]
        scaler = scaler_of(scale=4.0)
        for step in range(3):
            for optimizer, model in zip(wrapped, models, strict=True):
                inputs, targets = batch(step, comm.rank)
                optimizer.zero_grad()
                scaler.scale((model(inputs) - targets).square().mean()).backward()
                if step == 1 and comm.rank == 0 and optimizer is wrapped[1]:
                    next(model.parameters()).grad.fill_(float("inf"))
                scaler.step(optimizer)
            scaler.update()
        for optimizer in wrapped:
            optimizer.close()
        assert all(torch.isfinite(p).all() for m in models for p in m.parameters())
        return [optimizer.round for optimizer in wrapped], scaler.get_scale()

    assert ps.testing.run(2, rank) == [([3, 3], 2.0), ([3, 3], 8.0)]
