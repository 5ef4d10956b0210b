"""averaged(), consensus_distance(), broadcasts, average() and stats() against their closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from optimizer.common import KINDS, batch, bits, flat, network, ring, star, train, values
from support.ranks import on_ranks
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import CallOrderError, ConfigurationError
from pushsum_opt.gossip.asynchronous import MOST_ARRIVING

pytestmark = pytest.mark.filterwarnings("ignore:LBFGS on")
every_kind = pytest.mark.parametrize("kind", list(KINDS))
DATA_WEIGHTS = [1.0, 2.0, 5.0]


class Varied(nn.Module):
    """Parameters and buffers of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.norm = nn.BatchNorm1d(2)
        self.narrow = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).to(torch.bfloat16))
        self.wide = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        self.strided = nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6)[:, ::2])
        self.phase = nn.Parameter(torch.linspace(-1, 1, 4).to(torch.complex64))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("spectrum", torch.zeros(3, dtype=torch.complex64))
        self.register_buffer("half_buffer", torch.zeros(3, dtype=torch.float16))
        self.register_buffer("transposed", torch.zeros(3, 2).t())
        self.register_buffer("scalar", torch.zeros(()))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))
        self.register_buffer("hidden", torch.zeros(4), persistent=False)

    def forward(self, inputs):
        used = self.narrow.float().sum() + self.wide.sum() + self.strided.sum() + self.phase.abs().sum()
        return self.norm(self.body(inputs)) + used


def step(wrapped, model, k, rank):
    inputs, targets = batch(k, rank)
    wrapped.zero_grad()
    (model(inputs) - targets).square().mean().backward()
    wrapped.step()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point() or buffer.is_complex():
                buffer.add_(rank + 0.25)
        model.mask[rank] = False


def held(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("given", [True, False], ids=["with model", "without model"])
def test_averaged_holds_the_exact_weighted_mean_and_puts_everything_back_bit_for_bit(staleness, given):
    """With messages in flight too: at the end they are drained, which leaves the mean as it is."""

    def rank(comm):
        model = Varied()
        inner = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        options = {"graph": star, "staleness": staleness, "data_weight": DATA_WEIGHTS[comm.rank], "comm": comm}
        with ps.PushSumOptimizer(inner, model if given else None, **options) as wrapped:
            for k in range(5):
                step(wrapped, model, k, comm.rank)
            before, weight = held(model), wrapped.push_weight
            with wrapped.averaged():
                average = held(model)
            after = held(model)
            assert wrapped.push_weight == weight
            wrapped.drain()
            state = wrapped.state_dict()["push_sum"]["residuals"]
            return before, average, after, held(model), wrapped.push_weight, state

    results = ps.testing.run(3, rank)
    optimized = {name for name, p in Varied().named_parameters() if p.requires_grad}
    buffers = {n for n, b in Varied().named_buffers() if b.is_floating_point() or b.is_complex()} if given else set()
    for before, average, after, *_ in results:
        for name in before:
            assert bits([after[name]]) == bits([before[name]]), name
            if name not in optimized | buffers:
                assert bits([average[name]]) == bits([before[name]]), name
    for name in optimized | buffers:
        total = 0
        for r, (before, _, _, drained, weight, residuals) in enumerate(results):
            if name in buffers:
                total = total + 3 * DATA_WEIGHTS[r] / 8 * before[name].to(torch.complex128)
            else:
                total = total + weight * drained[name].to(torch.complex128)
                if name in residuals:
                    total = total + residuals[name].reshape(drained[name].shape)
        mean = total / 3
        for _, average, *_ in results:
            assert bits([average[name]]) == bits([results[0][1][name]]), f"{name} is the same on every rank"
            exact = mean if average[name].is_complex() else mean.real
            rtol = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float64: 1e-13}.get(average[name].dtype, 1e-6)
            torch.testing.assert_close(average[name].to(exact.dtype), exact, rtol=rtol, atol=rtol)


@every_kind
def test_averaged_puts_back_after_an_exception_inside_and_training_goes_on(kind):
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=star, comm=comm) as wrapped:
            train(wrapped, model, 2, comm.rank)
            before = bits(values(model))
            with pytest.raises(KeyError, match="evaluation"), wrapped.averaged():
                assert bits(values(model)) != before
                with torch.no_grad():
                    next(model.parameters()).fill_(float("nan"))
                raise KeyError("evaluation failed")
            assert bits(values(model)) == before
            train(wrapped, model, 1, comm.rank, start=2)
            return wrapped.round

    assert ps.testing.run(3, rank) == [3] * 3


@on_ranks(2)
def test_averaged_puts_back_nan_payloads_infinities_and_negative_zeros(comm):
    model = nn.ParameterList([torch.zeros(6)])
    wrapped = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), 0.1), model, nonfinite="skip", comm=comm)
    strange = torch.tensor([0x7FC12345, 0x7F800000, -0x80000000, 1, -0x800000, 0x3F800000], dtype=torch.int32)
    model[0].data.copy_(strange.view(torch.float32))
    before = bits(values(model))
    with wrapped.averaged():
        pass
    assert bits(values(model)) == before
    wrapped.close()


def test_steps_and_rounds_inside_averaged_are_refused_and_name_it():
    def rank(comm):
        model = network()
        with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, graph=ring, comm=comm) as wrapped:
            train(wrapped, model, 1, comm.rank)
            before = bits(values(model))
            with wrapped.averaged():
                for call in (wrapped.step, wrapped.gossip):
                    with pytest.raises(CallOrderError, match=r"inside averaged\(\)"):
                        call()
            assert bits(values(model)) == before
            train(wrapped, model, 1, comm.rank, start=1)
            return wrapped.round

    assert ps.testing.run(2, rank) == [2, 2]


@on_ranks(3)
def test_averaged_inside_averaged_changes_nothing_and_the_outer_still_refuses_steps(comm):
    model = network()
    with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, graph=star, comm=comm) as wrapped:
        train(wrapped, model, 2, comm.rank)
        before = bits(values(model))
        with wrapped.averaged():
            average = values(model)
            with wrapped.averaged():
                torch.testing.assert_close(values(model), average)
            assert bits(values(model)) == bits(average)
            with pytest.raises(CallOrderError, match=r"inside averaged\(\)"):
                wrapped.gossip()
        assert bits(values(model)) == before
        wrapped.gossip()


@on_ranks(2)
def test_what_is_done_to_momentum_inside_averaged_stays_as_with_any_optimizer(comm):
    """averaged() lends the model, not the optimizer's state."""
    model = network()
    with ps.PushSumOptimizer(KINDS["AdamW"](model.parameters()), model, comm=comm) as wrapped:
        train(wrapped, model, 2, comm.rank)
        before = flat(wrapped.optimizer.state_dict())
        with wrapped.averaged():
            assert flat(wrapped.optimizer.state_dict()) == before
        assert flat(wrapped.optimizer.state_dict()) == before


# ---------------------------------------------------------------------- consensus distance


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


# ---------------------------------------------------------------------- average


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


# ---------------------------------------------------------------------- broadcasts


@pytest.mark.parametrize("root", [0, 2])
@pytest.mark.parametrize("form", ["module", "state_dict"])
def test_broadcast_parameters_copies_the_roots_parameters_and_buffers_bit_for_bit(root, form):
    def rank(comm):
        model = Varied()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.copy_(torch.full(tensor.shape, comm.rank + 1))
            model.wide[0] = float("nan")
        places = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
        strides = [tensor.stride() for tensor in model.parameters()]
        ps.broadcast_parameters(model if form == "module" else model.state_dict(), root=root, comm=comm)
        assert places == [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())], "in place"
        assert strides == [tensor.stride() for tensor in model.parameters()]
        found = held(model)
        if form == "state_dict":
            assert (found.pop("hidden") == comm.rank + 1).all(), "not part of a state_dict"
        return {name: bits([tensor]) for name, tensor in found.items()}

    results = ps.testing.run(3, rank)
    assert results[0] == results[1] == results[2]
    assert results[0]["scalar"] == bits([torch.tensor(root + 1.0)])


def test_broadcast_object_gives_everyone_the_roots_object():
    class_of = {"seed": 3, "list": [1, (2, None)], "tensor": torch.arange(3), "bytes": b"x" * 100_000}

    def rank(comm):
        mine = copy.deepcopy(class_of) if comm.rank == 1 else {"not": "this"}
        found = ps.broadcast_object(mine, root=1, comm=comm)
        assert flat(found) == flat(class_of)
        assert (found is mine) == (comm.rank == 1)
        assert ps.broadcast_object(None if comm.rank == 0 else 5, comm=comm) is None
        return True

    assert ps.testing.run(3, rank) == [True] * 3


@pytest.mark.parametrize("root", [3, -1, 1.0])
@pytest.mark.parametrize("what", ["object", "parameters"])
def test_a_root_that_is_no_rank_is_refused_with_its_value(root, what):
    def rank(comm):
        if what == "object":
            ps.broadcast_object(1, root=root, comm=comm)
        else:
            ps.broadcast_parameters(network(), root=root, comm=comm)

    with pytest.raises(ps.testing.RankErrors, match=f"root={root}") as caught:
        ps.testing.run(3, rank, timeout=5)
    assert all(isinstance(error, ConfigurationError) for error in caught.value.errors.values())


# ---------------------------------------------------------------------- stats

KEYS = {
    "round", "push_weight", "seconds_waited", "bytes_sent", "worst_age", "chunks_skipped", "in_flight", "extra_bytes",
}  # fmt: skip


@pytest.mark.parametrize("staleness", [0, 2, "unbounded"])
@pytest.mark.parametrize("size", [1, 3])
def test_stats_are_plain_floats_under_the_documented_keys(staleness, size):
    def rank(comm):
        model = network()
        options = {"graph": ring, "staleness": staleness, "comm": comm}
        with ps.PushSumOptimizer(KINDS["SGD"](model.parameters()), model, **options) as wrapped:
            first = wrapped.stats()
            train(wrapped, model, 3, comm.rank)
            stats = wrapped.stats()
            assert first["round"] == first["bytes_sent"] == first["worst_age"] == 0.0
            most = MOST_ARRIVING if staleness == "unbounded" and size > 1 else 0  # others may have sent by now
            assert 0.0 <= first["in_flight"] <= most
            assert first["seconds_waited"] <= stats["seconds_waited"]
            assert stats["round"] == 3.0
            assert stats["push_weight"] == wrapped.push_weight
            for one in (first, stats):
                assert set(one) == KEYS
                assert all(type(value) is float and math.isfinite(value) for value in one.values())
                assert all(value >= 0 for value in one.values())
            documented = ps.PushSum.stats.__doc__
            assert all(f"``{key}``" in documented for key in KEYS)
            return stats

    numbers = sum(p.numel() for p in network().parameters())
    for stats in ps.testing.run(size, rank):
        if staleness != "unbounded":
            assert 4 * numbers * 3 * (size > 1) <= stats["bytes_sent"] <= (4 * numbers + 200) * 3 * (size > 1)
        if staleness == 0:
            assert (stats["in_flight"], stats["worst_age"], stats["chunks_skipped"]) == (0.0, 0.0, 0.0)


def test_worst_age_is_that_of_the_in_peer_not_heard_from_for_longest():
    """In a ring of two in which rank 1 sends in every third round only."""

    def seldom(rank, size, round):
        return (1,) if rank == 0 else ((0,) if round % 3 == 0 else ())

    def rank(comm):
        tensor = torch.zeros(3)
        with ps.PushSum([tensor], graph=ps.graphs.from_function(seldom, period=3), comm=comm) as push_sum:
            ages = []
            for _ in range(6):
                push_sum.mix()
                ages.append(push_sum.stats()["worst_age"])
            return ages

    assert ps.testing.run(2, rank) == [[0.0, 1.0, 2.0, 0.0, 1.0, 2.0], [0.0] * 6]
