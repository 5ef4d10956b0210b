"""The private names of torch that the library leans on do what it needs of them, in the torch that is installed."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import pushsum_opt as ps
from pushsum_opt import _torch_compat


class Bare(torch.optim.Optimizer):
    """An optimizer whose __init__ did not run, as a wrapper that keeps another one's state has it."""

    defaults = {"lr": 0.1}  # noqa: RUF012 - stands for another optimizer's, as a delegating property does

    def __init__(self) -> None:
        _torch_compat.make_hook_tables(self)

    def step(self, closure=None):
        return "stepped"


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1, momentum=0.9)


def test_count_writes_lets_backward_notice_and_leaves_inference_tensors_alone():
    weight, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    with torch.inference_mode():
        uncounted = torch.ones(3)
    loss = (weight**2).sum() + (other**2).sum()
    _torch_compat.count_writes([weight.detach(), other.detach()[1:], uncounted])
    assert (weight._version, other._version) == (1, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    _torch_compat.count_writes([])


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_count_writes_counts_one_by_one_where_torch_takes_no_list(monkeypatch, error):
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    counted = []

    def of_one(tensor):
        if not isinstance(tensor, torch.Tensor):
            raise error("increment_version expect a Tensor as input")
        counted.append(tensor)

    monkeypatch.setattr(torch.autograd.graph, "increment_version", of_one)
    _torch_compat.count_writes(weights)
    assert [id(tensor) for tensor in counted] == [id(weight) for weight in weights]


def test_make_hook_tables_makes_every_table_that_init_makes():
    tables = {name for name in vars(sgd()) if name.endswith("_hooks")}
    bare = Bare()
    assert {name for name in vars(bare) if name.endswith("_hooks")} == tables
    assert all(not getattr(bare, name) for name in tables)


def test_make_hook_tables_leaves_state_and_groups_alone_and_needs_defaults():
    """All that torch adds elsewhere is one default that its own optimizers have anyway."""
    assert not {"state", "param_groups", "defaults"} & set(vars(Bare()))
    assert Bare.defaults == {"lr": 0.1, "differentiable": False}
    optimizer = sgd()
    state, groups, defaults = optimizer.state, optimizer.param_groups, dict(optimizer.defaults)
    state["mine"] = 1
    _torch_compat.make_hook_tables(optimizer)
    assert optimizer.state is state
    assert optimizer.param_groups is groups
    assert optimizer.defaults == defaults
    assert state == {"mine": 1}


def test_make_hook_tables_makes_the_step_of_the_class_call_step_hooks_once():
    bare, another = Bare(), Bare()
    seen = []
    bare.register_step_pre_hook(lambda *_: seen.append("before"))
    bare.register_step_post_hook(lambda *_: seen.append("after"))
    assert bare.step() == another.step() == "stepped"
    assert seen == ["before", "after"]


def test_a_step_hook_can_replace_the_arguments():
    """What torch promises of hooks holds for a class that was hooked without __init__."""
    bare = Bare()
    bare.register_step_pre_hook(lambda optimizer, args, kwargs: ((lambda: "other",), kwargs))
    assert bare.step() == "stepped"


@pytest.mark.parametrize(
    ("register", "run", "expected"),
    [
        ("register_state_dict_post_hook", _torch_compat.run_state_dict_post_hooks, {"a": 1, "b": 2, "c": 3}),
        ("register_load_state_dict_pre_hook", _torch_compat.run_load_state_dict_pre_hooks, {"a": 1, "b": 2, "c": 3}),
    ],
)
def test_hooks_that_may_replace_a_state_run_in_order_and_may_return_none(register, run, expected):
    bare = Bare()
    seen = []
    getattr(bare, register)(lambda optimizer, state: {**state, "b": 2})
    getattr(bare, register)(lambda optimizer, state: seen.append(dict(state)))
    getattr(bare, register)(lambda optimizer, state: {**state, "c": 3})
    assert run(bare, {"a": 1}) == expected
    assert seen == [{"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("register", "run"),
    [
        ("register_state_dict_pre_hook", _torch_compat.run_state_dict_pre_hooks),
        ("register_load_state_dict_post_hook", _torch_compat.run_load_state_dict_post_hooks),
    ],
)
def test_hooks_that_only_look_run_in_order_with_the_optimizer(register, run):
    bare = Bare()
    seen = []
    getattr(bare, register)(lambda optimizer: seen.append(("first", optimizer)))
    handle = getattr(bare, register)(lambda optimizer: seen.append(("second", optimizer)))
    getattr(bare, register)(lambda optimizer: seen.append(("prepended", optimizer)), prepend=True)
    run(bare)
    assert seen == [("prepended", bare), ("first", bare), ("second", bare)]
    handle.remove()
    seen.clear()
    run(bare)
    assert [name for name, _ in seen] == ["prepended", "first"]


@pytest.mark.parametrize(
    "register",
    [
        lambda optimizer: optimizer.register_step_pre_hook(lambda *args: None),
        lambda optimizer: optimizer.register_step_post_hook(lambda *args: None),
        lambda optimizer: register_optimizer_step_pre_hook(lambda *args: None),
        lambda optimizer: register_optimizer_step_post_hook(lambda *args: None),
    ],
    ids=["own pre", "own post", "global pre", "global post"],
)
def test_hooks_around_a_step_are_seen(register):
    optimizer = sgd()
    assert not _torch_compat.has_step_hooks(optimizer)
    handle = register(optimizer)
    assert _torch_compat.has_step_hooks(optimizer)
    handle.remove()
    assert not _torch_compat.has_step_hooks(optimizer)


def test_torch_runs_the_same_hooks_in_its_own_state_dict():
    """If torch came to call these tables by another name or with other arguments, ours would fall silent."""
    optimizer = sgd()
    seen = []
    optimizer.register_state_dict_pre_hook(lambda *a: seen.append(("pre", len(a))))
    optimizer.register_state_dict_post_hook(lambda *a: seen.append(("post", len(a))))
    optimizer.register_load_state_dict_pre_hook(lambda *a: seen.append(("load pre", len(a))))
    optimizer.register_load_state_dict_post_hook(lambda *a: seen.append(("load post", len(a))))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    by_torch = list(seen)
    seen.clear()
    _torch_compat.run_state_dict_pre_hooks(optimizer)
    _torch_compat.run_state_dict_post_hooks(optimizer, {})
    _torch_compat.run_load_state_dict_pre_hooks(optimizer, {})
    _torch_compat.run_load_state_dict_post_hooks(optimizer)
    assert seen == by_torch == [("pre", 1), ("post", 2), ("load pre", 2), ("load post", 1)]


# ---------------------------------------------------------------------- gradient scaling


class Recorder(torch.optim.SGD):
    """Notes what a GradScaler has set on it when step() is called."""

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self.seen = []

    def step(self, closure=None):
        self.seen.append((getattr(self, "found_inf", "missing"), getattr(self, "grad_scale", "missing")))


class Supporting(Recorder):
    _step_supports_amp_scaling = True


def scaled(optimizer, gradient, unscale=False, enabled=True):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=enabled)
    scaler.scale(torch.ones(()))
    optimizer.param_groups[0]["params"][0].grad = gradient
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert not hasattr(optimizer, "found_inf")
    assert not hasattr(optimizer, "grad_scale")
    return optimizer.seen


def test_a_scaler_always_steps_an_optimizer_that_supports_scaling_and_hands_it_both_values():
    for value, expected in ((1.0, 0.0), (float("inf"), 1.0), (float("nan"), 1.0)):
        ((found_inf, scale),) = scaled(Supporting([nn.Parameter(torch.ones(3))], 0.1), torch.full((3,), value))
        assert isinstance(found_inf, torch.Tensor)
        assert found_inf.item() == expected
        assert isinstance(scale, torch.Tensor)
        assert scale.item() == 4.0


def test_after_unscaling_by_the_user_the_scale_is_none_and_the_gradient_is_divided_already():
    parameter = nn.Parameter(torch.ones(3))
    ((found_inf, scale),) = scaled(Supporting([parameter], 0.1), torch.full((3,), 8.0), unscale=True)
    assert scale is None
    assert found_inf.item() == 0.0
    assert parameter.grad.tolist() == [2.0] * 3


def test_without_any_gradient_found_inf_is_the_int_0():
    ((found_inf, scale),) = scaled(Supporting([nn.Parameter(torch.ones(3))], 0.1), None)
    assert type(found_inf) is int
    assert found_inf == 0
    assert scale.item() == 4.0


def test_a_disabled_scaler_sets_nothing():
    seen = scaled(Supporting([nn.Parameter(torch.ones(3))], 0.1), torch.ones(3), enabled=False)
    assert seen == [("missing", "missing")]


def test_an_optimizer_that_does_not_support_scaling_is_not_stepped_on_inf():
    """The reason why the wrapper says that it does."""
    assert scaled(Recorder([nn.Parameter(torch.ones(3))], 0.1), torch.full((3,), float("inf"))) == []


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_supports_amp_scaling_tells_fused_optimizers(kind, fused):
    optimizer = kind([nn.Parameter(torch.ones(3))], lr=0.1, fused=fused)
    assert _torch_compat.supports_amp_scaling(optimizer) is fused


def test_fused_optimizers_take_the_values_from_attributes():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=1.0, fused=True)
    parameter.grad = torch.full((3,), 2.0)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    optimizer.step()
    assert parameter.tolist() == [0.5] * 3
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert parameter.tolist() == [0.5] * 3


# ---------------------------------------------------------------------- backward()


def test_what_is_asked_for_in_a_hook_is_done_when_all_gradients_are_there_and_before_backward_returns():
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    seen, ids = [], set()

    def hook(parameter):
        ids.add(_torch_compat.backward_id())
        _torch_compat.at_end_of_backward(lambda: seen.append((first.grad is not None, second.grad is not None)))

    handles = [_torch_compat.after_accumulation(p, hook) for p in (first, second)]
    (first * second).sum().backward()
    assert seen == [(True, True)] * 2
    assert len(ids) == 1
    (first * second).sum().backward()
    assert len(ids) == 2
    for handle in handles:
        handle.remove()
    (first * second).sum().backward()
    assert len(seen) == 4


def test_an_exception_at_the_end_of_backward_comes_out_of_it_as_it_is():
    parameter = nn.Parameter(torch.ones(2))

    def fail():
        raise KeyError("mine")

    _torch_compat.after_accumulation(parameter, lambda p: _torch_compat.at_end_of_backward(fail))
    with pytest.raises(KeyError, match="mine"):
        parameter.sum().backward()


def test_a_frozen_parameter_keeps_the_hook_that_it_got_while_it_was_not_and_copies_have_none():
    parameter = nn.Parameter(torch.ones(2))
    seen = []
    _torch_compat.after_accumulation(parameter, seen.append)
    parameter.requires_grad_(False).requires_grad_(True)
    copy.deepcopy(parameter).sum().backward()
    assert not seen
    parameter.sum().backward()
    assert len(seen) == 1


# ---------------------------------------------------------------------- modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings(r"ignore:.torch\.jit\.(script|trace|trace_method). is deprecated")  # from torch 2.14 on
@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_model_trains_and_is_averaged(how):
    def make():
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        return torch.jit.script(model) if how == "script" else torch.jit.trace(model, torch.ones(8, 4))

    models = [make(), make()]

    def rank(comm):
        model = models[comm.rank]
        with ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm) as optimizer:
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
            with optimizer.averaged():
                return [value.clone() for value in model.state_dict().values()]

    first, second = ps.testing.run(2, rank)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def forms():
    return [
        nn.Parameter(torch.zeros(4, 6)),
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.zeros(2, 5, dtype=torch.complex64),
    ]


def test_a_guard_knows_forms_again_wherever_tensors_lie():
    tensors = forms()
    guard = _torch_compat.form_guard(tensors)
    assert guard is not None, "this torch has no such guards: rounds are slower where models have many tensors"
    assert guard(*tensors)
    tensors[0].data = torch.ones(4, 6)
    tensors[0].grad = torch.ones(4, 6)
    with torch.no_grad():
        assert guard(*tensors)


@pytest.mark.parametrize("number", [0, 1, 3])  # 2 has no elements, so its strides mean nothing
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to(torch.complex128 if t.is_complex() else torch.float64),
        lambda t: t.view(torch.float64 if t.is_complex() else torch.int32),
        lambda t: t.reshape(-1, 1, 1),
        lambda t: torch.empty_strided((*t.shape, 1), (*t.stride(), 7), dtype=t.dtype),
        lambda t: torch.empty_strided(t.shape, [2 * s + 1 for s in t.stride()], dtype=t.dtype) if t.dim() else t.half(),
    ],
    ids=["dtype", "dtype in place", "sizes", "a dimension more", "strides"],
)
def test_a_guard_sees_every_other_form(number, change):
    tensors = forms()
    tensors[0].requires_grad_(False)  # so that it may become any type
    guard = _torch_compat.form_guard(tensors)
    assert guard(*tensors)
    tensors[number].data = change(tensors[number].data)
    assert not guard(*tensors)


def test_own_tensor_is_what_the_module_itself_holds():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False))
    assert _torch_compat.own_tensor(model[0], "weight") is model[0].weight
    assert _torch_compat.own_tensor(model, "0.weight") is None
    assert _torch_compat.own_tensor(model[1], "weight") is None
    assert _torch_compat.own_tensor(model[1], "running_mean") is model[1].running_mean


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings(r"ignore:.torch\.jit\.(script|trace|trace_method). is deprecated")
def test_plain_tables_are_what_a_module_holds_but_not_one_that_is_scripted():
    model = nn.BatchNorm1d(3)
    parameters, buffers = _torch_compat.plain_tables(model)
    assert list(parameters.values()) == [model.weight, model.bias]
    model.weight = nn.Parameter(torch.zeros(3))
    assert parameters["weight"] is model.weight, "the module's own table, and not a copy"
    assert set(buffers) == {"running_mean", "running_var", "num_batches_tracked"}
    assert _torch_compat.plain_tables(torch.jit.script(nn.Linear(2, 3))) == ()


def test_own_tensor_follows_assignment():
    model = nn.Linear(2, 3)
    old = model.weight
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    assert _torch_compat.own_tensor(model, "weight") is old
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    assert _torch_compat.own_tensor(model, "weight") is model.weight is not old
    del model.weight
    assert _torch_compat.own_tensor(model, "weight") is None


def test_a_hook_sees_what_every_state_dict_is_about_to_return_until_it_is_removed():
    model = nn.Linear(2, 1)
    seen = []
    handle = _torch_compat.on_state_dict(model, lambda module, state, prefix, metadata: seen.append((module, state)))
    returned = model.state_dict()
    handle.remove()
    model.state_dict()
    assert len(seen) == 1
    assert seen[0][0] is model
    assert seen[0][1] is returned


def test_the_default_store_is_found(tmp_path):
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        before = store.num_keys()
        _torch_compat.default_store().set("word", "left")
        assert store.num_keys() == before + 1
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------------- the room itself


def test_tables_are_put_back_in_their_order_with_what_is_not_saved():
    module = nn.Module()
    module.a = nn.Parameter(torch.zeros(1))
    module.register_buffer("b", torch.zeros(1), persistent=False)
    module.register_buffer("c", torch.zeros(1))
    before = _torch_compat.own_tables(module, buffers=True)
    assert isinstance(before, _torch_compat.Tables)
    a, b = module.a, module.b
    del module.a, module.b
    module.a = torch.ones(1)  # a plain attribute now
    module.register_buffer("b", torch.ones(1))  # one that would be saved
    module.register_buffer("new", torch.ones(1))
    _torch_compat.put_tables(module, before)
    assert module.a is a
    assert module.b is b
    assert list(module._buffers) == ["b", "c", "new"]
    assert list(module.state_dict()) == ["a", "c", "new"]


def test_every_public_name_is_used_here():
    text = inspect.getsource(inspect.getmodule(test_every_public_name_is_used_here))
    assert [name for name in _torch_compat.__all__ if f"_torch_compat.{name}" not in text] == []
