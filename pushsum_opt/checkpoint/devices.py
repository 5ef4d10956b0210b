"""Moves loaded tensors to their devices: files are read onto the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["where_it_was"]


def where_it_was(saved: Any, present: Any) -> Any:
    """Return a loaded state with each tensor on the device of the tensor that is in its place at present.

    A tensor without a counterpart stays on the CPU: an optimizer that loads it moves it to the parameters' device.
    """
    if isinstance(saved, Tensor):
        return saved.to(present.device) if isinstance(present, Tensor) and present.device != saved.device else saved
    if isinstance(saved, Mapping) and isinstance(present, Mapping):
        moved = {key: where_it_was(value, present.get(key)) for key, value in saved.items()}
        return saved if _unchanged(moved.values(), saved.values()) else moved
    if type(saved) in (list, tuple) and type(present) in (list, tuple) and len(saved) == len(present):
        items = [where_it_was(value, one) for value, one in zip(saved, present, strict=True)]
        return saved if _unchanged(items, saved) else type(saved)(items)
    return saved


def _unchanged(new: Any, old: Any) -> bool:
    return all(one is other for one, other in zip(new, old, strict=True))


def keep_dtypes(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """After loading a state, give its tensors the dtype that was saved.

    torch's ``load_state_dict`` rounds floating state to the dtype of its parameter: float32 moments of bfloat16
    parameters would come back changed.
    """
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or not isinstance(states, Mapping):
        return
    for group, own in zip(groups, optimizer.param_groups, strict=False):
        for index, parameter in zip(group.get("params", ()), own["params"], strict=False):
            entries, held = states.get(index), optimizer.state.get(parameter)
            if isinstance(entries, Mapping) and isinstance(held, dict):
                _keep(held, entries)


def _keep(held: dict[str, Any], entries: Mapping[str, Any]) -> None:
    for key, value in entries.items():
        now = held.get(key)
        if key == "step" or not (isinstance(now, Tensor) and isinstance(value, Tensor)):
            continue
        if now.dtype != value.dtype and now.shape == value.shape:
            held[key] = value.to(now.device, copy=True)
