"""Calls the wrapped optimizer with the arguments that it takes: many optimizers differ from torch's signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["call_step", "call_zero_grad"]


def call_step(optimizer: Any, closure: Callable[[], Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``optimizer.step`` with what the user gave; ``closure`` is left out where it is None."""
    if closure is None and not args:
        return optimizer.step(**kwargs)
    return optimizer.step(closure, *args, **kwargs)


def call_zero_grad(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call ``optimizer.zero_grad``; ``set_to_none``, which frameworks always pass, only where it is taken.

    An optimizer whose ``zero_grad`` has no such argument decides by itself what becomes of gradients.
    """
    if "set_to_none" in kwargs and not _takes(optimizer.zero_grad, "set_to_none"):
        kwargs = {key: value for key, value in kwargs.items() if key != "set_to_none"}
    optimizer.zero_grad(*args, **kwargs)


def _takes(function: Any, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True  # a builtin: nothing is known about it
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
