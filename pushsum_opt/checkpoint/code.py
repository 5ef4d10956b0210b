"""Functions in an optimizer's parameter groups. They belong to the program: they do not travel, and are not saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["with_code", "without_code"]

GROUPS = "param_groups"


def without_code(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state_dict without the functions in its groups, and in those of optimizers inside it."""
    changed: dict[str, Any] = {
        key: without_code(value) for key, value in state.items() if isinstance(value, Mapping) and _is_nested(value)
    }
    if _has_groups(state):
        changed[GROUPS] = [{key: one for key, one in group.items() if not _is_code(one)} for group in state[GROUPS]]
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
            for key, value in own.items():
                if _is_code(value):
                    group.setdefault(key, value)
        changed[GROUPS] = groups
    return {**state, **changed}


def _has_groups(state: Mapping[str, Any]) -> bool:
    groups = state.get(GROUPS)
    return isinstance(groups, Sequence) and all(isinstance(group, Mapping) for group in groups)


def _is_code(value: Any) -> bool:
    return callable(value) and not isinstance(value, Tensor)


def _is_nested(value: Mapping[Any, Any]) -> bool:
    return GROUPS in value or any(isinstance(one, Mapping) and GROUPS in one for one in value.values())
