"""After averaged() the model is what it was: the same objects, in the same memory, with the same values."""

from __future__ import annotations

import pytest
import torch
from optimizer.common import bits
from torch import nn

import pushsum_opt as ps


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("cache", torch.ones(2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("count", torch.tensor(7))


def assign(model):
    model.scale = torch.full((3,), 9.0)


def register_anew(model):
    model.register_buffer("scale", torch.full((5,), 9.0), persistent=False)
    model.register_buffer("cache", torch.full((2,), 9.0))


def set_deep_inside(model):
    model.body[1].running_mean = model.body[1].running_mean * 2


def delete(model):
    del model.scale
    del model.cache


def make_it_an_attribute(model):
    del model.scale
    model.scale = "gone"


def make_it_a_parameter(model):
    del model.scale
    model.scale = nn.Parameter(torch.zeros(3))


def make_it_none(model):
    model.scale = None
    model.nothing = torch.ones(1)


def count_in_place(model):
    model.count.add_(3)  # as BatchNorm does in train mode
    torch.optim.swa_utils.update_bn([torch.randn(4, 3)], model.body)


def move_memory(model):
    model.scale.data = torch.full((7,), 9.0)
    model.body[0].weight.data = torch.zeros(9)
    model.frozen.data = torch.zeros(2, dtype=torch.int32)


def new_parameters(model):
    model.body[0].weight = nn.Parameter(torch.zeros(4, 3))
    model.frozen = nn.Parameter(torch.zeros(2))


def load_by_assignment(model):
    model.load_state_dict({k: torch.zeros_like(v) for k, v in model.state_dict().items()}, assign=True)


CHANGES = {
    function.__name__: function
    for function in (
        assign, register_anew, set_deep_inside, delete, make_it_an_attribute, make_it_a_parameter, make_it_none,
        count_in_place, move_memory, new_parameters, load_by_assignment,
    )
} | {
    "to float64": lambda model: model.to(torch.float64),
    "half": lambda model: model.half(),
    "to meta": lambda model: model.to("meta"),
    "strides": lambda model: setattr(model.body[0].weight, "data", torch.zeros(3, 4).t()),
}  # fmt: skip


def snapshot(model):
    """Return what a model holds: names in order, objects, addresses, values."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names = [list(model.state_dict()), list(held), [list(module._buffers) for module in model.modules()]]
    objects = [id(t) for t in held.values()]
    return names, objects, [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in held.values()], bits(held.values())


def fill_by_rank(model, rank):
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(rank)


def inner_of(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


@pytest.mark.parametrize("change", list(CHANGES.values()), ids=list(CHANGES))
@pytest.mark.parametrize("buffers", ["average", "gossip"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_an_evaluation_assigns_anew_is_put_back(change, buffers, fails):
    def rank(comm):
        model = Small()
        with ps.PushSumOptimizer(inner_of(model), model, buffers=buffers, comm=comm) as optimizer:
            fill_by_rank(model, comm.rank)
            before = snapshot(model)
            try:
                with optimizer.averaged():
                    assert model.scale[0] == 1.5
                    change(model)
                    if fails:
                        raise KeyError("evaluation")
            except KeyError:
                assert fails
            assert snapshot(model) == before
            optimizer.gossip()  # nothing is missing

    ps.testing.run(2, rank)


def test_averaged_inside_averaged_puts_back_what_was_moved_in_between():
    def rank(comm):
        model = Small()
        with ps.PushSumOptimizer(inner_of(model), model, comm=comm) as optimizer:
            fill_by_rank(model, comm.rank)
            before = snapshot(model)
            with optimizer.averaged():
                model.body[0].weight.data = model.body[0].weight.data.clone()
                model.scale = model.scale.clone()
                with optimizer.averaged():
                    pass
            assert snapshot(model) == before
            optimizer.gossip()

    ps.testing.run(2, rank)


def test_local_buffers_are_the_evaluations_own_and_keep_what_it_gives_them():
    def rank(comm):
        model = Small()
        with ps.PushSumOptimizer(inner_of(model), model, buffers="local", comm=comm) as optimizer:
            with optimizer.averaged():
                model.scale = torch.full((5,), 9.0)
                model.frozen = nn.Parameter(torch.zeros(2))
            return model.scale.tolist(), model.frozen.tolist()

    assert ps.testing.run(1, rank) == [([9.0] * 5, [1.0] * 2)]


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # of torch 2.14
def test_a_scripted_models_buffer_is_put_back():
    torch_script = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))

    def rank(comm):
        model = torch_script
        with ps.PushSumOptimizer(inner_of(model), model, comm=comm) as optimizer:
            before = dict(model.named_buffers())["1.running_mean"].clone()
            with optimizer.averaged():
                getattr(model, "1").running_mean = torch.full((4,), 9.0)
            assert torch.equal(dict(model.named_buffers())["1.running_mean"], before)
            optimizer.step()

    ps.testing.run(1, rank)
