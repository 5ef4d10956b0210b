"""Calls reach the wrapped optimizer as it takes them; functions in its groups neither travel nor are saved."""

from __future__ import annotations

import inspect

import pytest
import torch
from optimizer.common import bits, closure_of, network, values

import pushsum_opt as ps


class Old(torch.optim.SGD):
    """As optimizers were before set_to_none, with more arguments than torch's."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, lr=lr)
        self.calls = []

    def zero_grad(self):
        self.calls.append("zero_grad()")
        super().zero_grad(set_to_none=False)

    def step(self, closure=None, bs=1, *, scale=1.0):
        self.calls.append((closure is not None, bs, scale))
        return super().step(closure)

    def add_param_group(self, param_group, frozen=False):
        super().add_param_group(param_group)
        if hasattr(self, "calls"):
            self.calls.append(f"frozen={frozen}")


class NoClosure(torch.optim.SGD):
    def step(self):
        return super().step()


class OwnDefault(torch.optim.SGD):
    def zero_grad(self, set_to_none=False):
        super().zero_grad(set_to_none=set_to_none)


def wrapped(comm, kind=Old):
    model = network()
    return model, ps.PushSumOptimizer(kind(model.parameters(), lr=0.1), model, comm=comm)


def alone(function):
    return ps.testing.run(1, function)[0]


@pytest.mark.parametrize("given", [{}, {"set_to_none": True}, {"set_to_none": False}])
def test_zero_grad_without_set_to_none(given):
    def rank(comm):
        model, optimizer = wrapped(comm)
        closure_of(model, 0)()
        optimizer.zero_grad(**given)
        return optimizer.optimizer.calls, [p.grad.abs().sum().item() for p in model.parameters()]

    assert alone(rank) == (["zero_grad()"], [0.0] * 4)


def test_zero_grad_keeps_the_inner_default_and_shows_frameworks_torchs_signature():
    def rank(comm):
        model, optimizer = wrapped(comm, OwnDefault)
        closure_of(model, 0)()
        optimizer.zero_grad()
        kept = model[0].weight.grad is not None
        optimizer.zero_grad(True)
        return kept, model[0].weight.grad, list(inspect.signature(optimizer.zero_grad).parameters)

    assert alone(rank) == (True, None, ["set_to_none"])


def test_step_passes_other_arguments_on_by_keyword_and_by_position():
    def rank(comm):
        model, optimizer = wrapped(comm)
        closure = closure_of(model, 0)
        closure()
        optimizer.step(bs=5, scale=2.0)
        optimizer.step(None, 6)
        loss = optimizer.step(closure, 7)
        return optimizer.optimizer.calls, loss is not None, optimizer.round

    assert alone(rank) == ([(False, 5, 2.0), (False, 6, 1.0), (True, 7, 1.0)], True, 3)


def test_a_step_that_takes_no_closure_and_groups_with_more_arguments():
    def rank(comm):
        _, plain = wrapped(comm, NoClosure)
        plain.step()
        _, optimizer = wrapped(comm)
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]}, frozen=True)
        return plain.round, optimizer.optimizer.calls

    assert alone(rank) == (1, ["frozen=True"])


def with_rule(slope):
    def kind(parameters, lr):
        return torch.optim.SGD([{"params": list(parameters), "rule": lambda x: slope * x}], lr=lr, momentum=0.5)

    return kind


def test_a_lambda_in_a_group_is_each_ranks_own_also_where_rank_0s_state_travels():
    def rank(comm):
        model = network()
        inner = with_rule(comm.rank + 1.0)(model.parameters(), 0.1)
        if comm.rank == 0:  # its state differs, and so travels
            inner.step(closure_of(model, 0))
        optimizer = ps.PushSumOptimizer(inner, model, comm=comm)
        found = optimizer.param_groups[0]["rule"](10.0), bits([s["momentum_buffer"] for s in optimizer.state.values()])
        optimizer.close()
        return found

    one, other = ps.testing.run(2, rank)
    assert (one[0], other[0]) == (10.0, 20.0)
    assert one[1] == other[1] != []


def test_a_lambda_in_a_group_is_not_saved_and_stays_when_loading(tmp_path):
    def rank(comm):
        model, optimizer = wrapped(comm, with_rule(3.0))
        optimizer.step(closure_of(model, 0))
        ps.checkpoint.save(tmp_path, optimizer)
        before = bits(values(model))
        model, optimizer = wrapped(comm, with_rule(4.0))
        assert ps.checkpoint.load(tmp_path, optimizer).exact
        return bits(values(model)) == before, optimizer.param_groups[0]["rule"](1.0)

    assert alone(rank) == (True, 4.0)


def test_functions_inside_lists_and_dicts_of_a_group_are_not_saved_and_stay_when_loading(tmp_path):
    def with_rules(slope):
        def kind(parameters, lr=0.1):
            rules = {"rules": [lambda x: slope * x, slope], "by name": {"deep": (slope, lambda x: -slope * x)}}
            return torch.optim.SGD([{"params": list(parameters), **rules}], lr=lr, momentum=0.5)

        return kind

    def rank(comm):
        model, optimizer = wrapped(comm, with_rules(3.0))
        optimizer.step(closure_of(model, 0))
        ps.checkpoint.save(tmp_path, optimizer)
        model, optimizer = wrapped(comm, with_rules(4.0))
        assert ps.checkpoint.load(tmp_path, optimizer).exact
        (group,) = optimizer.param_groups
        (rule, slope), (deep_slope, deep) = group["rules"], group["by name"]["deep"]
        return rule(1.0), slope, deep_slope, deep(1.0)

    assert alone(rank) == (4.0, 3.0, 3.0, -4.0)
