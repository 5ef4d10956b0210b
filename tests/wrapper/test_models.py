"""Any model: every element of every parameter leaves and arrives, whatever its shape, dtype or place in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import ConfigurationError
from pushsum_opt.graphs import Ring


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.decoder = nn.Linear(4, 7, bias=False)
        self.decoder.weight = self.embedding.weight


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Parameter(torch.zeros(5, 3, dtype=torch.float64))
        self.plain = nn.Parameter(torch.zeros(40, 11))
        self.brain = nn.Parameter(torch.zeros(9, dtype=torch.bfloat16))
        self.short = nn.Parameter(torch.zeros(2, 2, dtype=torch.float16))
        self.turning = nn.Parameter(torch.zeros(6, dtype=torch.complex64))
        self.scalar = nn.Parameter(torch.zeros(()))
        self.empty = nn.Parameter(torch.zeros(0, 4))


def frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    return model


class Strided(nn.Module):
    """Not dense: every second column of a larger tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6, 10)[:, ::2])
        self.turned = nn.Parameter(torch.zeros(6, 10).t())


MODELS = {
    "a single layer": lambda: nn.Linear(3, 2),
    "tied weights": Tied,
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "channels_last": lambda: nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last),
    "mixed dtypes": Mixed,
    "float64": lambda: nn.Linear(30, 20).double(),
    "bfloat16": lambda: nn.Linear(30, 20).bfloat16(),
    "float16": lambda: nn.Linear(30, 20).half(),
    "complex": lambda: nn.Linear(5, 4, dtype=torch.complex64),
    "frozen": frozen,
    "strided": Strided,
    "the shape [3, 3, 3, 1]": lambda: nn.Conv2d(3, 3, (3, 1)),
}
every_model = pytest.mark.parametrize("name", list(MODELS))


def held(model):
    return [p for p in dict.fromkeys(model.parameters()) if p.requires_grad]


def fill(model, rank):
    """Give every element of every trained parameter a number of its own, exact in bfloat16 and in halves of it."""
    count = 0
    for parameter in held(model):
        numbers = torch.arange(count, count + parameter.numel()).remainder(32).reshape(parameter.shape)
        values = numbers.double() + 64.0 * rank
        parameter.data.copy_(torch.complex(values, -values) if parameter.is_complex() else values)
        count += 5


def expected_after_one_ring_round(make, size):
    models = [make() for _ in range(size)]
    for rank, model in enumerate(models):
        fill(model, rank)
    for rank in range(size):
        left = held(models[(rank - 1) % size])
        pairs = zip(held(models[rank]), left, strict=True)
        yield [0.5 * mine.detach() + 0.5 * theirs.detach() for mine, theirs in pairs]


@every_model
@pytest.mark.parametrize("chunk_bytes", [64, 256, 1 << 22])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_element_leaves_and_arrives(name, chunk_bytes, size, monkeypatch):
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", str(chunk_bytes))

    def rank(comm):
        model = MODELS[name]()
        optimizer = torch.optim.SGD(held(model), lr=0.0)
        with ps.PushSumOptimizer(optimizer, model, graph=Ring(), comm=comm) as wrapped:
            fill(model, comm.rank)
            wrapped.step()
        return [parameter.detach().clone() for parameter in held(model)]

    for found, expected in zip(
        ps.testing.run(size, rank), expected_after_one_ring_round(MODELS[name], size), strict=True
    ):
        for value, mean in zip(found, expected, strict=True):
            assert torch.equal(value, mean), "every element, exactly: all numbers here are exact in every dtype"


@every_model
@pytest.mark.parametrize("staleness", [0, 1])
def test_every_model_trains_with_gradients_missing_on_one_rank(name, staleness):
    def rank(comm):
        model = MODELS[name]()
        with ps.PushSumOptimizer(
            torch.optim.SGD(held(model), lr=0.01, momentum=0.5), model, staleness=staleness, comm=comm
        ) as wrapped:
            for step in range(4):
                for index, parameter in enumerate(held(model)):
                    missing = comm.rank == 1 and (index + step) % 2 == 0
                    parameter.grad = None if missing else torch.ones_like(parameter)
                wrapped.step()
            assert all(torch.isfinite(torch.view_as_real(p) if p.is_complex() else p).all() for p in held(model))
        return wrapped.push_weight

    assert sum(ps.testing.run(3, rank)) == pytest.approx(3, rel=1e-12)


def test_frozen_parameters_and_buffers_start_alike_and_are_left_alone_afterwards():
    def rank(comm):
        model = nn.Sequential(frozen(), nn.BatchNorm1d(2))
        for tensor in model.state_dict().values():
            tensor.fill_(float(comm.rank + 1))
        with ps.PushSumOptimizer(torch.optim.SGD(held(model), lr=0.1), model, comm=comm) as wrapped:
            assert all((tensor == 1).all() for tensor in model.state_dict().values())
            model[0][0].weight.data.fill_(comm.rank)
            model[1].running_mean.fill_(comm.rank)
            wrapped.gossip()
            assert (model[0][0].weight == comm.rank).all()
            assert (model[1].running_mean == comm.rank).all()

    ps.testing.run(3, rank)


def test_without_a_model_buffers_stay_as_they_are():
    def rank(comm):
        model = nn.BatchNorm1d(2)
        model.running_mean.fill_(float(comm.rank))
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        with ps.PushSumOptimizer(sgd, comm=comm) as wrapped, wrapped.averaged():
            assert (model.running_mean == comm.rank).all()

    ps.testing.run(2, rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_memory_format_changed_after_wrapping_changes_no_value(dtype):
    """The plan is made anew; a residual of half-precision parameters moves with its elements."""

    def rank(comm, changes):
        model = nn.Conv2d(3, 4, 3).to(dtype)
        sgd = torch.optim.SGD(model.parameters(), lr=0.0)
        with ps.PushSumOptimizer(sgd, model, graph=Ring(), comm=comm) as wrapped:
            generator = torch.Generator().manual_seed(comm.rank)
            for parameter in model.parameters():
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
            for step in range(6):
                if changes and step == 2:
                    model.to(memory_format=torch.channels_last)
                if changes and step == 4:
                    model.to(memory_format=torch.contiguous_format)
                wrapped.step()
            return [parameter.tolist() for parameter in model.parameters()], wrapped.push_weight

    assert ps.testing.run(3, lambda comm: rank(comm, True)) == ps.testing.run(3, lambda comm: rank(comm, False))


def test_a_memory_format_changed_on_one_rank_only_is_named():
    def rank(comm):
        model = nn.Conv2d(3, 4, 3)
        wrapped = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), model, graph=Ring(), comm=comm)
        if comm.rank == 1:
            model.to(memory_format=torch.channels_last)
        wrapped.step()

    with pytest.raises(ps.testing.RankErrors, match="have other shapes, strides or dtypes"):
        ps.testing.run(2, rank)


def test_elements_that_share_memory_are_refused():
    def rank(comm):
        shared = nn.Parameter(torch.zeros(3, 1).expand(3, 4))
        ps.PushSumOptimizer(torch.optim.SGD([shared], lr=0.1), comm=comm)

    with pytest.raises(ps.testing.RankErrors, match="share memory") as caught:
        ps.testing.run(1, rank)
    assert isinstance(caught.value.errors[0], ConfigurationError)


def test_parameters_that_overlap_are_refused_by_name():
    def rank(comm):
        whole = torch.zeros(10)
        model = nn.Module()
        model.one, model.two = nn.Parameter(whole[:6]), nn.Parameter(whole[4:])
        ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)

    with pytest.raises(ps.testing.RankErrors, match="one and two overlap"):
        ps.testing.run(1, rank)


@pytest.mark.parametrize("wire_dtype", [torch.bfloat16, "float16", torch.float32])
def test_a_wire_dtype_rounds_only_what_is_wider(wire_dtype):
    def rank(comm):
        model = Mixed()
        with ps.PushSumOptimizer(
            torch.optim.SGD(held(model), lr=0.0), model, graph=Ring(), wire_dtype=wire_dtype, comm=comm
        ) as wrapped:
            fill(model, comm.rank)
            wrapped.step()
            sent = wrapped.stats()["bytes_sent"]
        return [parameter.detach().clone() for parameter in held(model)], sent

    for (found, sent), expected in zip(
        ps.testing.run(3, rank), expected_after_one_ring_round(Mixed, 3), strict=True
    ):
        for value, mean in zip(found, expected, strict=True):
            assert torch.equal(value, mean), "these numbers survive any rounding"
        halves = wire_dtype != torch.float32
        elements_32, elements_64, elements_16 = 440 + 12 + 1, 15, 9 + 4
        bytes_32 = 2 if halves else 4
        assert sent - 48 < elements_32 * bytes_32 + elements_64 * bytes_32 + elements_16 * 2 <= sent
