"""Loading an optimizer's state without changing it: strings, sets, arrays and named tuples come back as they were.

torch's ``load_state_dict`` copies everything in a parameter's state that can be iterated over as
``type(value)(items)``. A string then becomes the text of a generator, and an array or a named tuple raises an error.
It also makes deep copies of what is in a group. The copy of a module is not trained, and a lock has no copy. So such
values are put into boxes before the call, and taken out afterwards.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..value_digest import PLAIN, belongs_to_one_rank

__all__ = ["load_state"]


class _Box:
    """Holds a value, and can neither be iterated over nor copied."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: Any) -> _Box:
        return self


def load_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Call ``optimizer.load_state_dict``; a user's own method or hook gets the values without boxes."""
    own = type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict
    hooked = getattr(optimizer, "_optimizer_load_state_dict_pre_hooks", None)
    if own or hooked or not isinstance(state.get("state"), Mapping):
        optimizer.load_state_dict(state)
        return
    boxed = {key: _boxed(entries, top=True) for key, entries in state["state"].items()}
    groups = [{key: _kept(value) for key, value in group.items()} for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "state": boxed, "param_groups": groups})
    for group in optimizer.param_groups:
        group.update({key: _opened(value, None) for key, value in group.items() if key != "params"})
    for parameter, entries in list(optimizer.state.items()):
        device = parameter.device if isinstance(parameter, Tensor) else None
        optimizer.state[parameter] = _opened(entries, device)


def _boxed(value: Any, *, top: bool = False) -> Any:
    kind = type(value)
    if kind is dict or (top and isinstance(value, dict)):
        return {key: _boxed(one) for key, one in value.items()}
    if kind in (list, tuple):
        return kind(_boxed(one) for one in value)
    if isinstance(value, Tensor):
        return _Box(value) if value.is_meta else value
    return _Box(value) if isinstance(value, Iterable) else value


def _kept(value: Any) -> Any:
    """Return a value of a group with boxes around what stays this very object; the rest is torch's to copy."""
    if isinstance(value, Tensor) or type(value) in PLAIN:
        return value
    if type(value) is dict:
        return {key: _kept(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_kept(one) for one in value)
    return _Box(value) if belongs_to_one_rank(value) else value


def _opened(value: Any, device: torch.device | None) -> Any:
    """Return a value out of its box, and so everything in it."""
    if isinstance(value, _Box):
        return _placed(value.value, device)
    if type(value) is dict:
        for key, one in value.items():
            value[key] = _opened(one, device)
        return value
    if type(value) in (list, tuple) and any(isinstance(one, _Box | dict | list | tuple) for one in value):
        return type(value)(_opened(one, device) for one in value)
    return value


def _placed(value: Any, device: torch.device | None) -> Any:
    """Return a value with the tensors in it on a device, as torch does for those that it knows."""
    if isinstance(value, Tensor):
        return value if device is None or value.is_meta or value.device == device else value.to(device)
    if isinstance(value, dict):
        placed = copy.copy(value)
        for key, one in value.items():
            placed[key] = _placed(one, device)
        return placed
    if isinstance(value, collections.deque):
        return collections.deque((_placed(one, device) for one in value), maxlen=value.maxlen)
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(_placed(one, device) for one in value)
    if type(value) in (list, tuple):
        return type(value)(_placed(one, device) for one in value)
    return value
