"""Scaling a step by its learning rate does what scaling its effect on the parameters does, without a copy of them."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer.common import bits, flat, network, train
from support.torch_optimizers import optim_db

import pushsum_opt as ps
from pushsum_opt.wrapped.rates import LINEAR, scale_with_rates, scaled_rates

FACTOR = 1.75
CASES = [
    pytest.param(info, case.kwargs, id=f"{info.optim_cls.__name__} {case.desc}")
    for info in optim_db
    if info.optim_cls in LINEAR
    for case in info.optim_inputs_func(device="cpu")
    if not isinstance(case.kwargs.get("lr"), torch.Tensor)
]


def steps(optimizer, parameters, numbers, sparse):
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in parameters:
            grad = parameter.detach() - torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.grad = grad.to_sparse(1) if sparse else grad
        optimizer.step()


@pytest.mark.parametrize(("info", "kwargs"), CASES)
def test_a_scaled_rate_scales_the_step_and_leaves_the_state_alone(info, kwargs):
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (5, 4))]
    sparse = info.only_supports_sparse_grads
    optimizer = info.optim_cls([p.requires_grad_() for p in parameters], **copy.deepcopy(kwargs))
    steps(optimizer, parameters, range(3), sparse)  # momentum is there
    twin = copy.deepcopy(optimizer)
    twins = [p for group in twin.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]

    steps(optimizer, parameters, [3], sparse)
    with scaled_rates(twin, FACTOR):
        steps(twin, twins, [3], sparse)

    for start, whole, scaled in zip(before, parameters, twins, strict=True):
        torch.testing.assert_close(scaled, start + FACTOR * (whole - start), rtol=1e-10, atol=1e-13)
        assert not torch.equal(scaled, start)
    assert flat(twin.state_dict()) == flat(optimizer.state_dict())


def test_the_list_holds_every_optimizer_of_torch_but_those_whose_state_knows_the_rate():
    others = {"ASGD", "LBFGS", "Rprop"}
    if hasattr(torch.optim, "Adafactor"):  # from torch 2.5 on
        others.add("Adafactor")
    assert {info.optim_cls.__name__ for info in optim_db if info.optim_cls not in LINEAR} == others
    assert len(CASES) > 50


def test_a_subclass_is_not_trusted_and_neither_is_a_rate_in_a_tensor_or_a_hook():
    class Own(torch.optim.SGD):
        pass

    parameters = [torch.zeros(2)]
    assert scale_with_rates(torch.optim.SGD(parameters, lr=0.1))
    assert not scale_with_rates(Own(parameters, lr=0.1))
    assert not scale_with_rates(torch.optim.Adam(parameters, lr=torch.tensor(0.1)))
    hooked = torch.optim.SGD(parameters, lr=0.1)
    handle = hooked.register_step_post_hook(lambda *args: None)
    assert not scale_with_rates(hooked)
    handle.remove()
    assert scale_with_rates(hooked)


def test_rates_come_back_after_an_error():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(2)], "lr": 0.5}, {"params": [torch.zeros(2)], "lr": 0.25}])
    with pytest.raises(ZeroDivisionError), scaled_rates(optimizer, 2.0):
        assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
        raise ZeroDivisionError
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]


@pytest.mark.parametrize("when", ["pre", "post"])
def test_a_hook_that_sets_rates_around_the_inner_step_meets_the_rates_that_were_set(when):
    def halve(optimizer, args, kwargs):
        optimizer.param_groups[0]["lr"] /= 2

    def rank(comm):
        model = network()
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        getattr(inner, f"register_step_{when}_hook")(halve)
        with ps.PushSumOptimizer(inner, model, staleness=1, comm=comm) as optimizer:
            train(optimizer, model, 5, comm.rank)
            assert optimizer.push_weight < 0.9, "steps are scaled"
        return inner.param_groups[0]["lr"]

    assert ps.testing.run(2, rank) == [2.0**-5] * 2


def trained(make_rate):
    def rank(comm):
        model = network()
        inner = torch.optim.Adam(model.parameters(), lr=make_rate(), weight_decay=0.1)
        with ps.PushSumOptimizer(inner, model, staleness=1, comm=comm) as optimizer:
            train(optimizer, model, 12, comm.rank)
            assert float(inner.param_groups[0]["lr"]) == pytest.approx(0.01)
            held = optimizer.push_sum.memory.extra_bytes
        return [p.detach().clone() for p in model.parameters()], held

    return ps.testing.run(4, rank)


def test_the_way_of_the_copy_and_the_way_of_the_rate_lead_to_the_same_parameters():
    by_rate, by_copy = trained(lambda: 0.01), trained(lambda: torch.tensor(0.01))
    for (ours, held), (theirs, copied) in zip(by_rate, by_copy, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert held == 0
        assert copied == sum(p.numel() * p.element_size() for p in theirs)


def test_where_the_push_weight_is_the_data_weight_nothing_is_scaled_not_even_by_1():
    def rank(comm):
        bare_model, model = network(), network()
        bare = torch.optim.SGD(bare_model.parameters(), lr=0.1, momentum=0.9)
        wrapped = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, comm=comm)
        train(bare, bare_model, 5)
        train(wrapped, model, 5)
        wrapped.close()
        return bits(model.parameters()) == bits(bare_model.parameters())

    assert ps.testing.run(1, rank) == [True]
