"""Every optimizer and every setting in torch's own table works wrapped as it does bare."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing._internal.common_optimizers import optim_db

import pushsum_opt as ps

CASES = [
    pytest.param(info, case, id=f"{info.optim_cls.__name__}-{index}-{case.desc}")
    for info in optim_db
    for index, case in enumerate(info.optim_inputs_func(device="cpu"))
]


def only_matrices(info) -> bool:
    return info.optim_cls.__name__ == "Muon"  # takes two-dimensional parameters alone


def sparse_only(info) -> bool:
    return info.optim_cls.__name__ == "SparseAdam"


def network(info) -> torch.nn.ParameterList:
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 3), (5, 4)] if only_matrices(info) else [(4, 3), (5,), (2, 2, 2)]
    return torch.nn.ParameterList([torch.randn(shape, generator=generator) for shape in shapes])


def make(info, case, parameters):
    kwargs = copy.deepcopy(case.kwargs)
    parameters = list(parameters)
    if case.params is not None and callable(case.params):
        parameters = case.params(parameters)
    return info.optim_cls(parameters, **kwargs)


def gradients(info, model, step, rank=0, scale=1.0):
    """Set the gradients of scale / 2 |p - c|^2, with a centre c for each step and rank; return its value."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    loss = torch.zeros(())
    for parameter in model:
        away = parameter.detach() - torch.randn(parameter.shape, generator=generator)
        loss += 0.5 * scale * away.square().sum()
        parameter.grad = (scale * away).to_sparse(1) if sparse_only(info) else scale * away
    return loss


def one_step(info, optimizer, model, step, rank=0, scale=1.0):
    def closure():
        return gradients(info, model, step, rank, scale)

    if info.step_requires_closure:
        return optimizer.step(closure)
    closure()
    return optimizer.step()


def flat(state):
    if isinstance(state, dict):
        return [item for key in state for item in (key, *flat(state[key]))]
    if isinstance(state, (list, tuple)):
        return [item for value in state for item in flat(value)]
    return [state]


def assert_equal(one, other):
    for left, right in zip(flat(one), flat(other), strict=True):
        if isinstance(left, torch.Tensor):
            assert torch.equal(left, right)
        else:
            assert left == right


@pytest.mark.parametrize(("info", "case"), CASES)
def test_on_one_rank_twenty_steps_have_the_bits_of_the_bare_optimizer(info, case):
    def rank(comm):
        bare_model, model = network(info), network(info)
        bare = make(info, case, bare_model)
        wrapped = ps.PushSumOptimizer(make(info, case, model), comm=comm)
        for step in range(20):
            expected = one_step(info, bare, bare_model, step)
            found = one_step(info, wrapped, model, step)
            assert (expected is None) == (found is None)
            if expected is not None:
                assert torch.equal(torch.as_tensor(expected), torch.as_tensor(found))
        assert_equal([*bare_model], [*model])
        state = wrapped.state_dict()
        del state["push_sum"]
        assert_equal(bare.state_dict(), state)
        wrapped.close()

    ps.testing.run(1, rank)


@pytest.mark.filterwarnings("ignore:LBFGS on 3 ranks")
@pytest.mark.parametrize(("info", "case"), CASES)
def test_on_three_ranks_it_runs_and_mass_is_conserved(info, case):
    def rank(comm):
        model = network(info)
        optimizer = ps.PushSumOptimizer(make(info, case, model), comm=comm)
        weights = []
        for step in range(5):
            one_step(info, optimizer, model, step, comm.rank, scale=0.1)
            weights.append(optimizer.push_weight)
        optimizer.close()
        assert all(torch.isfinite(parameter).all() for parameter in model)
        return weights

    for weights in zip(*ps.testing.run(3, rank), strict=True):
        assert sum(weights) == pytest.approx(3, rel=1e-13)


@pytest.mark.filterwarnings("ignore:LBFGS on 3 ranks")
@pytest.mark.parametrize(("info", "case"), CASES)
def test_on_three_ranks_that_do_not_learn_there_is_one_consensus_at_the_mean(info, case):
    """Rates of 0 where a rate can be set; ranks are moved apart after the start."""
    start = [network(info) for _ in range(3)]
    generator = torch.Generator().manual_seed(9)
    for model in start:
        for parameter in model:
            parameter.data += torch.randn(parameter.shape, generator=generator)
    mean = [sum(values) / 3 for values in zip(*start, strict=True)]

    def rank(comm):
        model = network(info)
        optimizer = ps.PushSumOptimizer(make(info, case, model), comm=comm)
        for parameter, value in zip(model, start[comm.rank], strict=True):
            parameter.data.copy_(value.data)
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
        for step in range(9):
            before = [parameter.detach().clone() for parameter in model]
            with torch.no_grad():  # Rprop, ASGD and their like move a little at rate 0: take that back
                optimizer.optimizer.step = _still(optimizer.optimizer.step, model, before)
            # A line search cannot stand still unless it is at the minimum.
            one_step(info, optimizer, model, step, comm.rank, scale=0.0 if info.step_requires_closure else 0.1)
        distance = ps.consensus_distance(optimizer)
        optimizer.close()
        return [parameter.detach().clone() for parameter in model], distance

    for values, distance in ps.testing.run(3, rank):
        assert distance < 1e-5
        for value, expected in zip(values, mean, strict=True):
            torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-5)


def _still(step, model, before):
    def stand_still(*arguments):
        loss = step(*arguments)
        for parameter, value in zip(model, before, strict=True):
            parameter.data.copy_(value)
        return loss

    return stand_still
