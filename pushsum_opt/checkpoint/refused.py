"""Which value of a state cannot be saved, where it is, and whose it is."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .safe_types import PLAIN

__all__ = ["load_safely", "first_line", "no_end", "refused"]


def refused(part: Any, error: BaseException) -> str:
    """Return what to say of a part that torch cannot write, or cannot read without running code from the file."""
    for path, value in _leaves(part, ()):
        if not _is_taken(value):
            kind = type(value)
            named = getattr(value, "__qualname__", None) if callable(value) else None
            what = f"{kind.__module__}.{kind.__qualname__}" + (f" ({named})" if named else "")
            where, fix = _place(path)
            return (
                f"{where} holds a {what}, which torch.load(weights_only=True) does not take (no code in a file is ever "
                f"run). {fix}"
            )
    return (
        f"what is saved holds something that torch.load(weights_only=True) does not take: {first_line(error)}. Save "
        "only tensors, numbers, strings, lists, tuples, sets and dicts"
    )


def no_end(path: tuple[Any, ...], why: str) -> str:
    """Return what to say of a container that holds itself, or too many others inside each other."""
    where, _ = _place(path[:4])
    return f"{where} {why}, which no file can hold. Save its plain values instead, and leave out what leads back to it"


def _leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, Mapping) and _is_taken(type(value)()):
        for key, one in value.items():
            if type(key) not in PLAIN:
                yield from _leaves(key, (*path, "a key"))
            yield from _leaves(one, (*path, key))
    elif type(value) in (list, tuple, set):
        for index, one in enumerate(value):
            yield from _leaves(one, (*path, index))
    elif type(value) not in PLAIN:
        yield path, value


def _is_taken(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        load_safely(file)
    except Exception:
        return False
    return True


def _place(path: tuple[Any, ...]) -> tuple[str, str]:
    """Return the place in the user's words, and what the user can do about it."""
    head, *rest = path or ("the value",)
    instead = "Save its plain values instead: numbers, strings, tensors, lists and dicts"
    if head == "optimizer":
        return "optimizer.state_dict()" + _keys(rest), (
            "It is the wrapped optimizer's own state: keep such objects out of its state_dict(), or allow the class by "
            "torch.serialization.add_safe_globals() before saving and loading"
        )
    if head == "companions" and rest:
        return f"the state_dict() of {rest[0]}" + _keys(rest[1:]), f"{instead}, or leave {rest[0]} out"
    if head == "model":
        return "model.state_dict()" + _keys(rest), instead
    if head == "extra":
        return "extra=" + _keys(rest), instead
    return f"{head}{_keys(rest)}", instead


def _keys(path: Any) -> str:
    keys = "".join(f"[{key!r}]" for key in path)
    return f", at {keys}," if keys else ""


def first_line(error: BaseException) -> str:
    """Return the class of an error and the beginning of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


_one_at_a_time = threading.Lock()
"""Filters of warnings belong to the process: ranks that are threads would take away each other's."""


def load_safely(file: Any, **more: Any) -> Any:
    """Load what torch has saved, onto the CPU, without running code from the file."""
    with _one_at_a_time, warnings.catch_warnings():
        # torch 2.14 warns that it looks at each sparse tensor, which is what is wanted. Where warnings are errors, a
        # sound file would count as one that cannot be read.
        warnings.filterwarnings("ignore", "Validating sparse tensor invariants")
        return torch.load(file, map_location="cpu", weights_only=True, **more)
