"""Containers that hold themselves, or are nested so deeply that code that walks through them does not end well."""

from __future__ import annotations

import argparse
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["DEEPEST", "endless"]

DEEPEST = 200  # containers inside each other


def endless(value: Any) -> tuple[tuple[Any, ...], str] | None:
    """Find a container that holds itself, or more than :data:`DEEPEST` others inside each other.

    Returns:
        the keys that lead to it, and which of the two it does; None where there is none.
    """
    above, done = {id(value)}, set()
    path: list[Any] = []
    levels: list[tuple[Any, Iterator[tuple[Any, Any]]]] = [(value, _inside(value))]
    while levels:
        holder, inside = levels[-1]
        for key, one in inside:
            if id(one) in above:
                return (*path, key), "holds itself"
            if id(one) in done or not _is_container(one):
                continue
            if len(levels) > DEEPEST:
                return tuple(path), f"holds more than {DEEPEST} containers inside each other"
            above.add(id(one))
            path.append(key)
            levels.append((one, _inside(one)))
            break
        else:
            levels.pop()
            above.discard(id(holder))
            done.add(id(holder))
            if levels:
                path.pop()
    return None


def _is_container(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return bool(value.dtype == object)
    return isinstance(value, Mapping | list | tuple | deque | types.SimpleNamespace | argparse.Namespace)


def _inside(value: Any) -> Iterator[tuple[Any, Any]]:
    """Give what a container holds, with the keys."""
    if isinstance(value, Mapping):
        return iter(value.items())
    if isinstance(value, types.SimpleNamespace | argparse.Namespace):
        return iter(vars(value).items())
    if isinstance(value, np.ndarray):
        return enumerate(value.reshape(-1))
    return enumerate(value if _is_container(value) else ())
