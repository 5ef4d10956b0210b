"""Functions in an optimizer's parameter groups. They belong to the program: they do not travel, and are not saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["with_code", "without_code"]

GROUPS = "param_groups"
MARK = "pushsum_opt: a function of the program"
"""Written in the place of a function that is inside a list, a tuple or a dict of a group."""


def without_code(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state_dict without the functions in its groups, and in those of optimizers inside it."""
    changed: dict[str, Any] = {
        key: without_code(value) for key, value in state.items() if isinstance(value, Mapping) and _is_nested(value)
    }
    if _has_groups(state):
        changed[GROUPS] = [
            {key: _marked(one) for key, one in group.items() if not _is_code(one)} for group in state[GROUPS]
        ]
    return {**state, **changed}


def with_code(state: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state_dict with the functions that the groups of another one hold, where it has none of its own."""
    changed: dict[str, Any] = {
        key: with_code(value, present[key])
        for key, value in state.items()
        if isinstance(value, Mapping) and _is_nested(value) and isinstance(present.get(key), Mapping)
    }
    if _has_groups(state) and _has_groups(present):
        groups = [dict(group) for group in state[GROUPS]]
        for group, own in zip(groups, present[GROUPS], strict=False):
            for key, value in group.items():
                group[key] = _filled(value, own.get(key))
            for key, value in own.items():
                if _is_code(value):
                    group.setdefault(key, value)
        changed[GROUPS] = groups
    return {**state, **changed}


def _marked(value: Any) -> Any:
    """Return a value with a mark in the place of every function; itself where there is none."""
    if type(value) is dict:
        new: Any = {key: _marked(one) for key, one in value.items()}
        return value if all(new[key] is one for key, one in value.items()) else new
    if type(value) in (list, tuple):
        new = type(value)([_marked(one) for one in value])
        return value if all(one is other for one, other in zip(new, value, strict=True)) else new
    return MARK if _is_code(value) else value


def _filled(value: Any, own: Any) -> Any:
    """Return a value with my own functions in the place of the marks; None where I have none there."""
    if type(value) is dict:
        return {key: _filled(one, own.get(key) if isinstance(own, dict) else None) for key, one in value.items()}
    if type(value) in (list, tuple):
        mine = list(own) if isinstance(own, list | tuple) else []
        mine += [None] * (len(value) - len(mine))
        return type(value)([_filled(one, other) for one, other in zip(value, mine, strict=False)])
    return (own if _is_code(own) else None) if isinstance(value, str) and value == MARK else value


def _has_groups(state: Mapping[str, Any]) -> bool:
    groups = state.get(GROUPS)
    return isinstance(groups, Sequence) and all(isinstance(group, Mapping) for group in groups)


def _is_code(value: Any) -> bool:
    return callable(value) and not isinstance(value, Tensor)


def _is_nested(value: Mapping[Any, Any]) -> bool:
    return GROUPS in value or any(isinstance(one, Mapping) and GROUPS in one for one in value.values())
