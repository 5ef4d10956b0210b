"""Every optimizer and setting in torch's own table: the bits of the bare one on one rank; push-sum on three.

Left out of the table:
    * the flag ``differentiable``: such a step refuses leaf parameters, so it optimizes nothing that a module holds.
Set apart, because there is no learning rate that makes them stand still:
    * Rprop, whose steps have a least size, and LBFGS with a line search: they get gradients of 0 instead.
"""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer.common import bits, flat, star
from support.torch_optimizers import optim_db, settings_of

import pushsum_opt as ps


def slow(case):
    """What torch does by default is tried in the quick run, the other implementations in the whole one."""
    return [pytest.mark.slow] if " & " in case.desc else []


SETTINGS = [
    pytest.param(info, case.kwargs, id=f"{info.optim_cls.__name__} {case.desc}")
    for info in optim_db
    for case in info.optim_inputs_func(device="cpu")
]
IMPLEMENTATIONS = [
    pytest.param(info, case.kwargs, id=f"{info.optim_cls.__name__} {case.desc}", marks=slow(case))
    for info in optim_db
    for case in settings_of("cpu", torch.float32, info, skip=("differentiable",))
]
WITHOUT_A_RATE = ("Rprop", "LBFGS")
DATA_WEIGHTS = [1.0, 2.0, 5.0]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:LBFGS on 3 ranks")]


def test_the_table_is_whole():
    """If torch's table changes its form, or new optimizers want parameters of their own, this says so."""
    wrapped = {info.optim_cls for info in optim_db}
    exported = {one for one in vars(torch.optim).values() if isinstance(one, type)} - {torch.optim.Optimizer}
    assert wrapped == {one for one in exported if issubclass(one, torch.optim.Optimizer)}
    assert all(case.params is None for info in optim_db for case in info.optim_inputs_func(device="cpu"))
    assert len(IMPLEMENTATIONS) > len(SETTINGS) > 70  # torch 2.4 has 71


def network(info) -> torch.nn.ParameterList:
    generator = torch.Generator().manual_seed(3)
    matrices_only = info.optim_cls.__name__ == "Muon"  # by name: torch before 2.9 has none
    shapes = [(4, 3), (5, 4)] if matrices_only else [(4, 3), (5,), (2, 2, 2), ()]
    if info.only_supports_sparse_grads:
        shapes = shapes[:-1]  # a scalar has no sparse gradient
    return torch.nn.ParameterList([torch.randn(shape, generator=generator) for shape in shapes])


def make(info, kwargs, model):
    return info.optim_cls(list(model), **copy.deepcopy(kwargs))


def one_step(info, optimizer, model, step, rank=0, scale=1.0):
    """Step on scale / 2 |p - c|^2, with a centre c for each step and rank; on its negative where that is maximized."""
    scale = -scale if optimizer.param_groups[0].get("maximize") else scale

    def closure():
        generator = torch.Generator().manual_seed(100 * step + rank)
        loss = torch.zeros(())
        for parameter in model:
            away = parameter.detach() - torch.randn(parameter.shape, generator=generator)
            loss += 0.5 * scale * away.square().sum()
            parameter.grad = (scale * away).to_sparse(1) if info.only_supports_sparse_grads else scale * away
        return loss

    if info.step_requires_closure:
        return optimizer.step(closure)
    closure()
    return optimizer.step()


@pytest.mark.parametrize(("info", "kwargs"), IMPLEMENTATIONS)
def test_on_one_rank_twenty_steps_have_the_bits_of_the_bare_optimizer(info, kwargs):
    def rank(comm):
        bare_model, model = network(info), network(info)
        bare = make(info, kwargs, bare_model)
        wrapped = ps.PushSumOptimizer(make(info, kwargs, model), model, comm=comm)
        start = bits(model)
        for step in range(20):
            expected = one_step(info, bare, bare_model, step)
            assert flat(one_step(info, wrapped, model, step)) == flat(expected)
            assert bits(model) == bits(bare_model)
        assert bits(model) != start
        state = wrapped.state_dict()
        assert state.pop("push_sum")["push_weight"] == 1.0
        assert flat(state) == flat(bare.state_dict())
        wrapped.close()

    ps.testing.run(1, rank)


@pytest.mark.parametrize(("info", "kwargs"), SETTINGS)
def test_on_three_ranks_it_learns_and_mass_is_conserved_in_every_round(info, kwargs):
    def rank(comm):
        model = network(info)
        start, weights = bits(model), []
        inner = make(info, kwargs, model)
        options = {"graph": star, "data_weight": DATA_WEIGHTS[comm.rank], "comm": comm}
        with ps.PushSumOptimizer(inner, model, **options) as wrapped:
            for step in range(5):
                one_step(info, wrapped, model, step, comm.rank, scale=0.1)
                weights.append(wrapped.push_weight)
        assert all(torch.isfinite(parameter).all() for parameter in model)
        assert bits(model) != start
        return weights

    weights = ps.testing.run(3, rank)
    for together in zip(*weights, strict=True):
        assert sum(together) == pytest.approx(3, rel=1e-13)
        assert min(together) > 0
    assert weights[0][0] != pytest.approx(3 / 8), "mass moves"


@pytest.mark.parametrize(("info", "kwargs"), SETTINGS)
def test_on_three_ranks_with_rate_0_there_is_one_consensus_the_weighted_mean_of_the_start(info, kwargs):
    generator = torch.Generator().manual_seed(9)
    starts = [[torch.randn(p.shape, generator=generator) for p in network(info)] for _ in range(3)]
    mean = [
        sum(v * value.double() for v, value in zip(DATA_WEIGHTS, values, strict=True)) / 8
        for values in zip(*starts, strict=True)
    ]

    def rank(comm):
        model = network(info)
        inner = make(info, kwargs, model)
        options = {"graph": star, "data_weight": DATA_WEIGHTS[comm.rank], "comm": comm}
        with ps.PushSumOptimizer(inner, model, **options) as wrapped:
            for parameter, value in zip(model, starts[comm.rank], strict=True):
                parameter.data.copy_(value)
            for group in wrapped.param_groups:
                group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
            for step in range(24):
                scale = 0.0 if info.optim_cls.__name__ in WITHOUT_A_RATE else 1.0
                one_step(info, wrapped, model, step, comm.rank, scale)
            return [parameter.detach().double() for parameter in model], ps.consensus_distance(wrapped)

    for found, distance in ps.testing.run(3, rank):
        assert distance < 2e-5
        torch.testing.assert_close(found, mean, rtol=0, atol=2e-5)
