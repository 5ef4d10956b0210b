"""average() and consensus_distance() against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from optimizer.common import KINDS, Varied, bits, network, train
from support.ranks import on_ranks

import pushsum_opt as ps
from pushsum_opt.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore:LBFGS on")
DATA_WEIGHTS = [1.0, 2.0, 5.0]


@pytest.mark.parametrize("size", [1, 4])
def test_average_equals_its_closed_form_and_gives_back_the_kind_that_it_got(size):
    def rank(comm):
        r, n = comm.rank, comm.size
        weights = np.arange(1.0, n + 1)
        mean = float((weights * np.arange(n)).sum() / weights.sum())
        options = {"data_weight": 1.0 + r, "comm": comm}
        assert ps.average(float(r), **options) == pytest.approx(mean, rel=1e-15)
        for plain in (r, float(r), np.float32(r)):
            assert type(ps.average(plain, **options)) is float
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            given = torch.full((2, 3), float(r), dtype=dtype).t()
            before = bits([given])
            found = ps.average(given, **options)
            assert found.dtype == dtype
            assert found.shape == (3, 2)
            assert torch.equal(found, torch.full((3, 2), mean, dtype=torch.float64).to(dtype))
            assert bits([given]) == before, "a new one"
        assert ps.average(torch.tensor(float(r)), **options).shape == ()
        assert ps.average(torch.ones(0), **options).shape == (0,)
        for numpy_dtype in (np.float32, np.float64):
            found = ps.average(np.full((2, 2), r, numpy_dtype), **options)
            assert isinstance(found, np.ndarray)
            assert found.dtype == numpy_dtype
            np.testing.assert_allclose(found, mean, rtol=1e-7)
        gradient = torch.full((2,), float(r), requires_grad=True)
        assert not ps.average(gradient, **options).requires_grad

    ps.testing.run(size, rank)


@on_ranks(2)
def test_average_of_complex_values_keeps_their_imaginary_part(comm):
    value = complex(comm.rank, 1 + comm.rank)
    tensor = ps.average(torch.full((2,), value, dtype=torch.complex64), comm=comm)
    assert torch.equal(tensor, torch.full((2,), 0.5 + 1.5j, dtype=torch.complex64))
    array = ps.average(np.full(2, value), comm=comm)
    np.testing.assert_allclose(array, 0.5 + 1.5j)


@on_ranks(3)
def test_average_is_weighted_by_the_data_weights_of_the_newest_open_optimizer(comm):
    r = comm.rank
    assert ps.average(float(r), comm=comm) == 1.0
    model = network()
    with ps.PushSumOptimizer(
        KINDS["SGD"](model.parameters()), model, data_weight=DATA_WEIGHTS[r], comm=comm
    ) as wrapped:
        assert ps.average(float(r), comm=comm) == pytest.approx((2 + 10) / 8, rel=1e-15)
        assert ps.average(float(r), data_weight=1.0, comm=comm) == 1.0
        train(wrapped, model, 2, r)
        assert ps.average(float(r), comm=comm) == pytest.approx(12 / 8, rel=1e-15), "v, not w"
    assert ps.average(float(r), comm=comm) == 1.0, "closed: nothing is weighted any more"


@on_ranks(3)
def test_average_is_summed_in_float64(comm):
    value = torch.tensor([1e8 if comm.rank == 0 else 1.0], dtype=torch.float32)
    assert ps.average(value.double(), comm=comm).item() == (1e8 + 2) / 3
    half = torch.tensor([60000.0], dtype=torch.float16)
    assert ps.average(half, comm=comm).item() == 60000.0, "the sum passes what a float16 can hold"


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_average_refuses_an_impossible_data_weight_with_its_value(weight):
    def rank(comm):
        ps.average(1.0, data_weight=weight, comm=comm)

    with pytest.raises(ps.testing.RankErrors, match=f"data_weight={weight}") as caught:
        ps.testing.run(2, rank, timeout=30)
    assert all(isinstance(error, ConfigurationError) for error in caught.value.errors.values())


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("of", ["the optimizer", "its push-sum"])
def test_consensus_distance_is_the_root_mean_square_of_the_distance_from_the_mean(size, of, monkeypatch):
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "64")

    def rank(comm):
        model = Varied()
        inner = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        with ps.PushSumOptimizer(inner, model, data_weight=1.0 + comm.rank, comm=comm) as wrapped:
            generator = torch.Generator().manual_seed(comm.rank)
            for parameter in model.parameters():
                real = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
                real.copy_(torch.randn(real.shape, generator=generator))
            vectors = [
                (torch.view_as_real(p.detach()) if p.is_complex() else p.detach()).double().reshape(-1).numpy()
                for p in inner.param_groups[0]["params"]
            ]
            before = bits(model.parameters())
            distance = ps.consensus_distance(wrapped if of == "the optimizer" else wrapped.push_sum)
            assert bits(model.parameters()) == before
            return np.concatenate(vectors), distance

    results = ps.testing.run(size, rank)
    z = np.stack([vector for vector, _ in results])
    expected = np.sqrt(((z - z.mean(0)) ** 2).sum(1).mean())
    for _, distance in results:
        assert isinstance(distance, float)
        assert distance == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert (expected == 0) == (size == 1)


def test_consensus_distance_of_something_else_is_refused():
    model = network()
    with pytest.raises(ConfigurationError, match="got SGD"):
        ps.consensus_distance(KINDS["SGD"](model.parameters()))
