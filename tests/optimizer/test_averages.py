"""averaged() against its closed form, and that it leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from optimizer.common import KINDS, Varied, batch, bits, flat, held, network, ring, star, train, values
from support.ranks import on_ranks
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import CallOrderError

pytestmark = pytest.mark.filterwarnings("ignore:LBFGS on")
every_kind = pytest.mark.parametrize("kind", list(KINDS))
DATA_WEIGHTS = [1.0, 2.0, 5.0]


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
