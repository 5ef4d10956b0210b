"""What happens to floating buffers: local, averaged inside averaged(), or travelling with the parameters."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import ConfigurationError, LayoutError

STALENESS = [0, 1, 2, "unbounded"]


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def forward_and_step(model, optimizer, rank, k):
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(100 * rank + k)) + rank
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def one_rank(comm, buffers, staleness=0, steps=6, **options):
    """Train; return the running means before averaged(), inside it and after it, and the tracked batches."""
    model = normalised()
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"buffers": buffers, "staleness": staleness, "comm": comm, **options}
    with ps.PushSumOptimizer(inner, model, **options) as optimizer:
        for k in range(steps + (comm.rank if staleness == "unbounded" else 0)):
            forward_and_step(model, optimizer, comm.rank, k)
        optimizer.drain()
        before = model[1].running_mean.clone()
        with optimizer.averaged():
            inside = model[1].running_mean.clone()
        return before, inside, model[1].running_mean.clone(), int(model[1].num_batches_tracked)


@pytest.mark.parametrize("staleness", STALENESS)
def test_local_buffers_stay_what_they_are_everywhere(staleness):
    for before, inside, after, _ in ps.testing.run(3, lambda comm: one_rank(comm, "local", staleness)):
        assert torch.equal(before, inside)
        assert torch.equal(before, after)


@pytest.mark.parametrize("buffers", ["average", None])
@pytest.mark.parametrize("staleness", STALENESS)
def test_averaged_buffers_are_the_mean_inside_averaged_and_local_elsewhere(staleness, buffers):
    results = ps.testing.run(3, lambda comm: one_rank(comm, buffers, staleness))
    mean = torch.stack([before.double() for before, *_ in results]).mean(0).float()
    for before, inside, after, _ in results:
        torch.testing.assert_close(inside, mean, rtol=1e-6, atol=1e-7)
        assert not torch.allclose(before, mean, atol=1e-3)
        assert torch.equal(before, after)


@pytest.mark.parametrize("staleness", STALENESS)
@pytest.mark.parametrize("buffers", ["local", "gossip"])
def test_travelling_buffers_come_together_as_parameters_do(staleness, buffers):
    """Once nothing moves them any more, gossip alone makes them equal; local ones stay apart."""

    def rank(comm):
        model = normalised()
        inner = torch.optim.SGD(model.parameters(), lr=0.01)
        with ps.PushSumOptimizer(inner, model, buffers=buffers, staleness=staleness, comm=comm) as optimizer:
            for k in range(5):
                forward_and_step(model, optimizer, comm.rank, k)
            for _ in range(100):
                optimizer.gossip()
                optimizer.drain()
        return model[1].running_mean.clone(), int(model[1].num_batches_tracked)

    means, tracked = zip(*ps.testing.run(3, rank), strict=True)
    spread = (torch.stack(means) - torch.stack(means).mean(0)).norm().item()
    assert (spread < 1e-4) == (buffers == "gossip")
    assert tracked == (5, 5, 5), "counters are no averages"


def test_mass_of_travelling_buffers_is_conserved():
    """With data weights and an irregular graph: sum of w times the buffer is what it was."""

    def rank(comm):
        model = nn.Module()
        model.p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        model.register_buffer("b", torch.full((3,), float(comm.rank), dtype=torch.float64))
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        star = ps.graphs.Star()
        options = {"graph": star, "buffers": "gossip", "data_weight": 1.0 + comm.rank, "comm": comm}
        with ps.PushSumOptimizer(inner, model, **options) as optimizer:
            model.b.fill_(float(comm.rank))  # the start gave everyone rank 0's
            totals = []
            for _ in range(8):
                model.p.grad = torch.ones_like(model.p)
                optimizer.step()
                totals.append((optimizer.push_weight, optimizer.push_weight * model.b.numpy()))
        return totals

    for moment in zip(*ps.testing.run(3, rank), strict=True):
        assert sum(w for w, _ in moment) == pytest.approx(3, rel=1e-14)
        np.testing.assert_allclose(sum(x for _, x in moment), 3 * (0 * 1 + 1 * 2 + 2 * 3) / 6, rtol=1e-14)


def test_a_travelling_buffer_that_was_replaced_is_named():
    def rank(comm):
        model = normalised()
        optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, buffers="gossip", comm=comm)
        forward_and_step(model, optimizer, comm.rank, 0)
        model[1].running_mean = torch.zeros(4)
        with pytest.raises(LayoutError, match=r"1\.running_mean"):
            forward_and_step(model, optimizer, comm.rank, 1)

    ps.testing.run(1, rank)


@pytest.mark.parametrize("buffers", ["average", "gossip"])
def test_buffers_without_a_model_are_refused(buffers):
    inner = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ConfigurationError, match=f"buffers='{buffers}' without a model"):
        ps.PushSumOptimizer(inner, buffers=buffers)


INF = float("inf")


def with_a_mask(value=0.0):
    model = nn.Module()
    model.p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    model.register_buffer("mask", torch.full((4,), value, dtype=torch.float64))
    model.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
    return model


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("staleness", STALENESS)
def test_a_buffer_that_becomes_infinite_keeps_nothing_else_from_mixing(staleness, nonfinite):
    """Parameters and other elements of buffers mix as before, on a graph that moves mass; inf stays where it is."""

    def rank(comm, infinite):
        model = with_a_mask()
        inner = torch.optim.Adagrad(model.parameters(), lr=0.0)
        kept = {"graph": ps.graphs.Star(), "wire_dtype": torch.float32, "buffers": "gossip"}
        with ps.PushSumOptimizer(
            inner, model, staleness=staleness, nonfinite=nonfinite, comm=comm, **kept
        ) as optimizer:
            for tensor in (model.p, model.mean, model.mask):
                tensor.data.fill_(1.0 + comm.rank)
            for k in range(6):
                if infinite and k == 2:
                    model.mask[1:3] = torch.tensor([-INF, INF])
                model.p.grad = torch.ones_like(model.p)
                optimizer.step()
            optimizer.drain()
            skipped = optimizer.stats()["chunks_skipped"]
            with optimizer.averaged():
                inside = torch.cat([model.p.detach(), model.mean, model.mask])
            held = torch.cat([model.p.detach(), model.mean, model.mask])
            return held, inside, skipped, optimizer.push_weight, ps.consensus_distance(optimizer)

    clean = ps.testing.run(3, lambda comm: rank(comm, False))
    late = ps.testing.run(3, lambda comm: rank(comm, True))
    finite = [0, 1, 2, 3, 4, 5, 8]
    for (held, inside, skipped, _, distance), (expected, mean, *_) in zip(late, clean, strict=True):
        assert held[6:8].tolist() == inside[6:8].tolist() == [-INF, INF]
        torch.testing.assert_close(inside[finite], mean[finite])
        assert (skipped, np.isfinite(distance)) == (0, True)
        if staleness != "unbounded":
            assert torch.equal(held[finite], expected[finite])
    assert sum(weight for *_, weight, _ in late) == pytest.approx(3, rel=1e-12)


def test_a_buffer_that_is_infinite_on_one_rank_is_left_out_by_all_with_the_reason(caplog):
    def rank(comm):
        model = with_a_mask(-INF if comm.rank == 1 else 0.0)
        if comm.rank == 2:
            model.mean = model.p.detach()[:2]
        model.register_buffer("travels", torch.ones(1))
        with ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), 0.1), model, buffers="gossip", comm=comm) as it:
            model.mask.fill_(comm.rank)
            it.gossip()
            with it.averaged():
                return sorted(it.push_sum.memory.tensors), model.mask.tolist()

    with caplog.at_level(logging.INFO, "pushsum_opt"):
        assert ps.testing.run(3, rank) == [(["p", "travels"], [1.0] * 4)] * 3
    assert "mask holds inf or nan on rank 1; mean shares memory with p on rank 2" in caplog.text


def test_an_exact_average_takes_no_infinite_elements_of_buffers():
    def rank(comm):
        model = with_a_mask()
        exact = ps.algorithms.PeriodicAverage(first=2)
        inner = torch.optim.SGD(model.parameters(), 0.1)
        with ps.PushSumOptimizer(inner, model, buffers="gossip", algorithm=exact, comm=comm) as optimizer:
            model.p.data.fill_(comm.rank)
            model.mask[1:] = torch.tensor([-INF, -INF if comm.rank == 0 else 2.0, float(comm.rank)])
            optimizer.gossip()
            return model.p.tolist(), model.mask.tolist()

    first, second = ps.testing.run(2, rank)
    assert first == ([0.5] * 3, [0.0, -INF, -INF, 0.5])
    assert second == ([0.5] * 3, [0.0, -INF, 2.0, 0.5])


def test_a_buffer_of_a_layer_that_was_added_keeps_nothing_from_mixing_either():
    def rank(comm):
        model = nn.Sequential(nn.Linear(2, 2))
        inner = torch.optim.SGD(model.parameters(), 0.1)
        with ps.PushSumOptimizer(inner, model, buffers="gossip", comm=comm) as optimizer:
            added = with_a_mask()
            model.append(added)
            optimizer.add_param_group({"params": list(added.parameters())})
            added.p.data.fill_(comm.rank)
            added.mask[1:] = torch.tensor([-INF, -INF if comm.rank == 0 else 2.0, float(comm.rank)])
            optimizer.gossip()
            return added.p.tolist(), added.mask.tolist()

    first, second = ps.testing.run(2, rank)
    assert first == ([0.5] * 3, [0.0, -INF, -INF, 0.5])
    assert second == ([0.5] * 3, [0.0, -INF, 2.0, 0.5])


def test_a_wrapper_is_made_anew_over_buffers_that_one_rank_now_leaves_out():
    def rank(comm):
        model = with_a_mask()
        ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), 0.1), model, buffers="gossip", comm=comm)
        if comm.rank == 0:
            model.mask[1] = -INF
        inner = torch.optim.SGD(model.parameters(), 0.1)
        with ps.PushSumOptimizer(inner, model, buffers="gossip", comm=comm) as optimizer:
            optimizer.gossip()
            return optimizer.round

    assert ps.testing.run(2, rank) == [1, 1]
