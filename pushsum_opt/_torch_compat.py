"""Every private name of torch that the library leans on, in one place. ``tests/test_torch_compat.py`` pins each.

Contracts:
    * ``Optimizer.__setstate__({})`` makes the hook tables, hooks the ``step`` of the class once, and otherwise only
      gives ``defaults`` a ``differentiable=False`` where it has none;
    * the hook tables are dicts of callables under the names below;
    * a GradScaler always calls ``step()`` of an optimizer with ``_step_supports_amp_scaling``, with ``grad_scale``
      (None once unscaled) and ``found_inf`` (which may be the int 0) set on it as attributes;
    * hooks that run around ``step()`` are in ``_optimizer_step_pre_hooks`` and ``_optimizer_step_post_hooks`` of an
      optimizer, and those of all optimizers in ``_global_optimizer_pre_hooks`` and ``_global_optimizer_post_hooks``;
    * ``torch.autograd.Variable._execution_engine.queue_callback``, called in a hook of backward(), calls back once that
      backward() has accumulated every gradient, as DistributedDataParallel does; an exception comes out of it;
    * ``torch._C._current_graph_task_id`` numbers the backward() that the calling hook belongs to;
    * ``Module._register_state_dict_hook(hook)`` calls ``hook(module, state_dict, prefix, local_metadata)`` at the end
      of every ``state_dict()`` and returns a handle with ``remove()``;
    * ``Module._parameters`` and ``Module._buffers`` map names to the tensors that the module itself holds; a scripted
      module has tables with ``items()`` that are written by ``setattr``;
    * ``Module._non_persistent_buffers_set`` has the names of the module's own buffers that are not saved;
    * ``torch._C._dynamo.guards.TensorGuards``, by which compiled functions know their arguments again, says yes only to
      as many tensors of the same dtypes, devices, sizes and strides.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = [
    "Tables",
    "after_accumulation",
    "at_end_of_backward",
    "backward_id",
    "count_writes",
    "default_store",
    "form_guard",
    "has_step_hooks",
    "make_hook_tables",
    "on_state_dict",
    "own_tables",
    "own_tensor",
    "plain_tables",
    "put_tables",
    "run_load_state_dict_post_hooks",
    "run_load_state_dict_pre_hooks",
    "run_state_dict_post_hooks",
    "run_state_dict_pre_hooks",
    "supports_amp_scaling",
]

Optimizer = torch.optim.Optimizer

_patching = threading.Lock()  # torch looks whether step is hooked and then hooks it: two threads would do it twice


def make_hook_tables(optimizer: Optimizer) -> None:
    """Give an optimizer whose ``__init__`` did not run its hook tables, and its class the hooked ``step``."""
    with _patching:
        Optimizer.__setstate__(optimizer, {})


def supports_amp_scaling(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer takes ``grad_scale`` and ``found_inf`` by itself, as torch's fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Tell whether somebody's code runs around every ``step()`` of this optimizer."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


def run_state_dict_pre_hooks(optimizer: Optimizer) -> None:
    for hook in optimizer._optimizer_state_dict_pre_hooks.values():
        hook(optimizer)


def run_state_dict_post_hooks(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    return _run(optimizer._optimizer_state_dict_post_hooks, optimizer, state)


def run_load_state_dict_pre_hooks(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    return _run(optimizer._optimizer_load_state_dict_pre_hooks, optimizer, state)


def run_load_state_dict_post_hooks(optimizer: Optimizer) -> None:
    for hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        hook(optimizer)


def _run(
    hooks: dict[int, Callable[..., dict[str, Any] | None]], optimizer: Optimizer, state: dict[str, Any]
) -> dict[str, Any]:
    for hook in hooks.values():
        replaced = hook(optimizer, state)
        state = state if replaced is None else replaced
    return state


def after_accumulation(parameter: Tensor, hook: Callable[[Tensor], None]) -> Any:
    """Call a hook whenever backward() has added to the gradient of a leaf; return the handle that removes it."""
    return parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]


def at_end_of_backward(callback: Callable[[], None]) -> None:
    """In a hook of backward(): have something done at its end, before it returns."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(callback)


def backward_id() -> int:
    """In a hook of backward(): return a number that this call of backward() has for its own."""
    return int(torch._C._current_graph_task_id())


def count_writes(tensors: Sequence[Tensor]) -> None:
    """Let autograd know that elements of these tensors were written behind its back."""
    counted = [tensor for tensor in tensors if not tensor.is_inference()]
    count: Any = torch.autograd.graph.increment_version
    try:
        count(counted)
    except (AttributeError, RuntimeError, TypeError):  # before torch 2.7 it takes one; what it raises depends on torch
        for tensor in counted:
            count(tensor)


def form_guard(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """Return a function that tells at once whether tensors, its arguments, have the forms that these have now.

    Form is dtype, device, sizes and strides, not where a tensor lies. A no may mean something else, such as another
    ``requires_grad``. None: this torch has no such function.
    """
    try:
        from torch._C._dynamo import guards

        make: Any = guards.TensorGuards
        sizes, strides = [list(tensor.size()) for tensor in tensors], [list(tensor.stride()) for tensor in tensors]
        check: Callable[..., bool] = make(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    except (ImportError, AttributeError, TypeError, SystemError):
        return None
    return check


def own_tensor(module: nn.Module, name: str) -> Tensor | None:
    """Return the parameter or buffer that a module itself holds under a name, without the cost of attribute look-up."""
    # By `in` and [], not get(): the tables of a TorchScript module know nothing else.
    for table in (module._parameters, module._buffers):
        if name in table and (found := table[name]) is not None:
            return found
    return None


def plain_tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Return the tables of what a module itself holds, parameters and buffers; nothing for one that is scripted."""
    tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
    return tables if all(isinstance(table, dict) for table in tables) else ()


@dataclass(frozen=True)
class Tables:
    """What a module itself holds: parameters, buffers where they were asked for, and which of these are not saved."""

    tensors: tuple[dict[str, Tensor | None], ...]
    not_saved: frozenset[str] | None


def own_tables(module: nn.Module, *, buffers: bool) -> Tables:
    """Return copies of the tables of what a module itself holds."""
    tables: Any = (module._parameters, module._buffers) if buffers else (module._parameters,)
    names = getattr(module, "_non_persistent_buffers_set", None) if buffers else None
    return Tables(tuple(dict(table.items()) for table in tables), None if names is None else frozenset(names))


def put_tables(module: nn.Module, tables: Tables) -> None:
    """Make the names of tables that :func:`own_tables` returned stand for what they stood for; new names stay."""
    now = own_tables(module, buffers=True).tensors
    own: Any = (module._parameters, module._buffers)
    for index, before in enumerate(tables.tensors):
        changed = [name for name, tensor in before.items() if name not in now[index] or now[index][name] is not tensor]
        if isinstance(module, torch.jit.ScriptModule):
            for name in changed:
                setattr(module, name, before[name])
            continue
        for name in changed:  # it may have become an attribute, or gone from one table to the other
            vars(module).pop(name, None)
            own[1 - index].pop(name, None)
        if changed:
            whole = {**before, **own[index], **before}  # in the order of before
            own[index].clear()
            own[index].update(whole)
    if tables.not_saved is not None and not isinstance(module, torch.jit.ScriptModule):
        known = tables.tensors[1]
        new = {name for name in module._non_persistent_buffers_set if name not in known}
        module._non_persistent_buffers_set = {*tables.not_saved, *new}


def on_state_dict(module: nn.Module, hook: Callable[..., None]) -> Any:
    """Have a hook called with what ``module.state_dict()`` is about to return; return its handle.

    A scripted module takes no such hooks; then the handle is None.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return None
    return module._register_state_dict_hook(hook)  # type: ignore[no-untyped-call]


def default_store() -> Any:
    """Return the store of the default process group, in which its processes leave words for each other."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
