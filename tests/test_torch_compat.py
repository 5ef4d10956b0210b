"""The private names of torch that the library leans on do what ``_torch_compat`` says of them."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from pushsum_opt import _torch_compat


class Bare(torch.optim.Optimizer):
    """An optimizer whose ``__init__`` did not run torch's."""

    def __init__(self):
        self.param_groups, self.state, self.defaults = "groups", "state", {"lr": 1.0}
        _torch_compat.make_hook_tables(self)

    def step(self, closure=None):
        return "stepped"


def test_hook_tables_are_made_and_nothing_else_is_touched():
    bare = Bare()
    assert (bare.param_groups, bare.state, bare.defaults["lr"]) == ("groups", "state", 1.0)
    seen = []
    bare.register_step_pre_hook(lambda *_: seen.append("before"))
    bare.register_step_post_hook(lambda *_: seen.append("after"))
    assert bare.step() == "stepped"
    assert seen == ["before", "after"]


def test_state_dict_hooks_run_and_may_replace_the_state():
    bare = Bare()
    seen = []
    bare.register_state_dict_pre_hook(lambda o: seen.append("saving"))
    bare.register_state_dict_post_hook(lambda o, state: {**state, "saved": True})
    bare.register_load_state_dict_pre_hook(lambda o, state: {**state, "loaded": True})
    bare.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    _torch_compat.run_state_dict_pre_hooks(bare)
    assert _torch_compat.run_state_dict_post_hooks(bare, {"a": 1}) == {"a": 1, "saved": True}
    assert _torch_compat.run_load_state_dict_pre_hooks(bare, {"a": 1}) == {"a": 1, "loaded": True}
    _torch_compat.run_load_state_dict_post_hooks(bare)
    assert seen == ["saving", "loaded"]


def test_fused_optimizers_say_that_they_take_the_scale_themselves():
    parameters = [nn.Parameter(torch.zeros(1))]
    assert _torch_compat.supports_amp_scaling(torch.optim.AdamW(parameters, fused=True))
    assert not _torch_compat.supports_amp_scaling(torch.optim.AdamW(parameters))


def test_a_grad_scaler_always_steps_what_takes_the_scale_and_sets_both_attributes():
    class Taking(torch.optim.SGD):
        _step_supports_amp_scaling = True

        def step(self, closure=None):
            seen.append((self.found_inf, self.grad_scale))

    seen = []
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = Taking([parameter], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for gradient, unscales in ((1.0, False), (float("inf"), False), (1.0, True)):
        scaler.scale(parameter.sum()).backward()
        parameter.grad = torch.full((1,), gradient)
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert [found.item() for found, _ in seen] == [0.0, 1.0, 0.0]
    assert [None if scale is None else scale.item() for _, scale in seen] == [8.0, 8.0, None]
    assert "found_inf" not in vars(optimizer)


def test_a_module_holds_its_own_parameters_by_name():
    layer = nn.Linear(2, 2)
    assert _torch_compat.own_parameter(layer, "weight") is layer.weight
    assert _torch_compat.own_parameter(nn.Sequential(layer), "0.weight") is None


def test_every_function_of_the_room_is_pinned_here():
    source = inspect.getsource(inspect.getmodule(test_every_function_of_the_room_is_pinned_here))
    for name in _torch_compat.__all__:
        assert f"_torch_compat.{name}" in source, name
