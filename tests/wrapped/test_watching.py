"""Parameters that reach the wrapped optimizer behind the wrapper are exchanged, or refused with their names."""

from __future__ import annotations

import pytest
import torch
from support.ranks import on_ranks
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import LayoutError, PeerFailed

WAYS = {
    "add_param_group of the inner one": lambda opt, new: opt.optimizer.add_param_group({"params": new}),
    "param_groups bound anew": lambda opt, new: setattr(
        opt, "param_groups", [*opt.param_groups, {**opt.param_groups[0], "params": new}]
    ),
    "param_groups bound anew, new first": lambda opt, new: setattr(
        opt.optimizer, "param_groups", [{**opt.param_groups[0], "params": new}, *opt.param_groups]
    ),
    "a group appended to": lambda opt, new: opt.param_groups[0]["params"].extend(new),
    "a group's list replaced": lambda opt, new: opt.param_groups[0].update(
        params=[*opt.param_groups[0]["params"], *new]
    ),
    "another optimizer in the place of the inner one": lambda opt, new: setattr(
        opt, "optimizer", torch.optim.SGD([*opt.param_groups[0]["params"], *new], lr=opt.param_groups[0]["lr"])
    ),
    "the groups of a copy": lambda opt, new: opt.optimizer.__setstate__(
        {"param_groups": [*opt.param_groups, {**opt.param_groups[0], "params": new}]}
    ),
}
every_way = pytest.mark.parametrize("way", list(WAYS.values()), ids=list(WAYS))


def wrapped(comm, lr=0.0, with_model=True, **options):
    body, head = nn.Linear(4, 1), nn.Linear(4, 1)
    model = nn.ModuleList([body, head])
    inner = torch.optim.SGD(body.parameters(), lr=lr)
    return ps.PushSumOptimizer(inner, model if with_model else None, comm=comm, **options), body, head


def fill(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


@every_way
@pytest.mark.parametrize("staleness", [0, 1, "unbounded"])
def test_parameters_that_come_behind_the_wrapper_are_mixed_and_averaged(way, staleness):
    def rank(comm):
        optimizer, _, head = wrapped(comm, staleness=staleness)
        with optimizer:
            optimizer.step()
            way(optimizer, list(head.parameters()))
            fill(head, comm.rank)
            with optimizer.averaged():
                inside = head.weight[0, 0].item()
            mine = head.weight[0, 0].item()
            for _ in range(30):
                optimizer.step()
            optimizer.drain()
            return inside, mine, round(head.weight[0, 0].item(), 2), round(head.bias.item(), 2)

    results = ps.testing.run(2, rank)
    assert [(inside, mine) for inside, mine, *_ in results] == [(0.5, 0.0), (0.5, 1.0)]
    if staleness != "unbounded":  # asynchronous ranks are near, and not at once
        assert [mixed for *_, mixed, _ in results] == [bias for *_, bias in results] == [0.5, 0.5]


def test_tensors_that_were_not_there_at_construction_start_with_rank_0s_values():
    def rank(comm):
        optimizer, *_ = wrapped(comm)
        with optimizer:
            new = nn.Parameter(torch.full((3,), 5.0 + comm.rank))
            optimizer.optimizer.add_param_group({"params": [new]})
            optimizer.step()
            return new[0].item()

    assert ps.testing.run(3, rank) == [5.0, 5.0, 5.0]


def test_what_came_behind_the_wrapper_is_part_of_the_next_group_that_is_added_rightly():
    def rank(comm):
        optimizer, _, head = wrapped(comm)
        with optimizer:
            optimizer.optimizer.add_param_group({"params": [head.bias]})
            optimizer.add_param_group({"params": [head.weight]})
            fill(head, float(comm.rank))
            optimizer.step()
            return len(optimizer.push_sum.memory.tensors), head.bias.item(), head.weight[0, 0].item()

    assert ps.testing.run(2, rank) == [(4, 0.5, 0.5)] * 2


@pytest.mark.parametrize("staleness", [0, 1, "unbounded"])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        (lambda head, rank: [nn.Parameter(torch.zeros(3 + rank))], "group 1 parameter 0"),
        (lambda head, rank: [nn.Parameter(torch.zeros(3, dtype=[torch.float32, torch.float64][rank]))], "parameter 0"),
        (lambda head, rank: [head.weight if rank else head.bias], r"1\.(weight|bias)"),
    ],
    ids=["other shapes", "other dtypes", "other parameters"],
)
@on_ranks(2, timeout=30)
def test_ranks_that_get_different_parameters_raise_layout_errors_that_name_them(comm, given, named, staleness):
    optimizer, _, head = wrapped(comm, staleness=staleness, timeout=10.0)
    optimizer.optimizer.add_param_group({"params": given(head, comm.rank)})
    with pytest.raises(LayoutError, match=named):
        optimizer.step()


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_rank_that_alone_gets_new_parameters_names_them_on_both_ranks(staleness):
    def rank(comm):
        optimizer, _, head = wrapped(comm, staleness=staleness, timeout=10.0)
        optimizer.step()
        if comm.rank == 1:
            optimizer.optimizer.add_param_group({"params": list(head.parameters())})
        with pytest.raises((LayoutError, PeerFailed, ps.errors.MismatchError), match=r"1\.weight, 1\.bias") as caught:
            for _ in range(4):
                optimizer.step()
        return type(caught.value)

    assert ps.testing.run(2, rank, timeout=60)[1] is LayoutError


@on_ranks(1)
def test_inside_join_new_parameters_are_refused_with_their_names(comm):
    optimizer, _, head = wrapped(comm)
    with pytest.raises(LayoutError, match=r"1\.weight.*join"), optimizer.join():
        optimizer.optimizer.add_param_group({"params": list(head.parameters())})
        optimizer.step()


@pytest.mark.parametrize("with_model", [True, False])
def test_a_parameter_object_in_the_place_of_another_is_exchanged_instead(with_model):
    """Same shape: only this rank has to know, so nobody meets."""

    def rank(comm):
        optimizer, body, _ = wrapped(comm, with_model=with_model)
        with optimizer:
            optimizer.step()
            body.weight = nn.Parameter(torch.full((1, 4), float(comm.rank)))
            optimizer.param_groups[0]["params"][0] = body.weight
            optimizer.step()
            return body.weight[0, 0].item(), len(optimizer.push_sum.memory.tensors)

    assert ps.testing.run(2, rank) == [(0.5, 2)] * 2


def test_a_parameter_object_of_another_shape_is_exchanged_beside_the_old_one():
    def rank(comm):
        optimizer, body, _ = wrapped(comm)
        with optimizer:
            body.weight = nn.Parameter(torch.full((2, 4), float(comm.rank)))
            optimizer.param_groups[0]["params"][0] = body.weight
            optimizer.step()
            fill(body, float(comm.rank))
            optimizer.step()
            return body.weight[1, 0].item(), list(optimizer.push_sum.memory.tensors)

    assert ps.testing.run(2, rank) == [(0.5, ["0.weight", "0.bias", "0.weight'"])] * 2


def test_parameters_that_leave_the_groups_stay_exchanged_and_may_come_back():
    def rank(comm):
        optimizer, body, _ = wrapped(comm)
        with optimizer:
            kept = optimizer.param_groups[0]["params"].pop(0)
            optimizer.step()
            fill(body, float(comm.rank))
            optimizer.step()
            mixed = body.weight[0, 0].item()
            optimizer.param_groups[0]["params"].insert(0, kept)
            optimizer.step()
            return mixed, len(optimizer.push_sum.memory.tensors)

    assert ps.testing.run(2, rank) == [(0.5, 2)] * 2


def test_points_of_parameters_that_come_behind_the_wrapper_travel_too():
    def rank(comm):
        body, head = nn.Linear(4, 1), nn.Linear(4, 1)
        inner = torch.optim.SGD(body.parameters(), lr=0.0, momentum=0.9)
        model = nn.ModuleList([body, head])
        with ps.PushSumOptimizer(inner, model, gossip_state=("momentum_buffer",), comm=comm) as optimizer:
            optimizer.optimizer.add_param_group({"params": [head.weight]})
            for module in (body, head):
                for parameter in module.parameters():
                    parameter.grad = torch.full_like(parameter, float(comm.rank))
            optimizer.step()
            return inner.state[head.weight]["momentum_buffer"][0, 0].item()

    assert ps.testing.run(2, rank) == [0.5, 0.5]


@on_ranks(1)
def test_slow_momentum_follows_parameters_whose_place_in_the_groups_changes(comm):
    """One rank: the exact average changes nothing, and with momentum 0 and lr 1 the slow step must not either."""
    optimizer, body, head = wrapped(comm, lr=0.1, algorithm=ps.algorithms.SlowMomentum(every=1, momentum=0.0))
    with optimizer:
        optimizer.optimizer.param_groups.insert(0, {**optimizer.param_groups[0], "params": [head.bias]})
        before = [p.detach().clone() for p in (*body.parameters(), head.bias)]
        for parameter in (*body.parameters(), head.bias):
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for old, parameter in zip(before, (*body.parameters(), head.bias), strict=True):
            torch.testing.assert_close(parameter.detach(), old - 0.1)
