"""Tests whether an optimizer can load the state that it has returned: better now than when a run is resumed."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..log import log
from ..value_digest import digest
from .code import with_code
from .files import load_tensors
from .part import KEY

__all__ = ["try_loading"]

Optimizer = torch.optim.Optimizer
_tried: weakref.WeakSet[Any] = weakref.WeakSet()


def try_loading(optimizer: Any, file: Path) -> None:
    """Load what was just saved into a copy of the wrapped optimizer that shares its tensors; once for each optimizer.

    Only where the optimizer has its own state_dict() or load_state_dict(): those of torch need no test.

    Raises:
        CheckpointError: it cannot.
    """
    inner = optimizer.optimizer
    if optimizer in _tried:
        return
    _tried.add(optimizer)
    kind = type(inner)
    if kind.state_dict is Optimizer.state_dict and kind.load_state_dict is Optimizer.load_state_dict:
        return
    try:
        copied = _twin(inner)
    except Exception:  # it holds something that cannot be copied: then only loading will tell
        return
    saved = load_tensors(file)["optimizer"]
    state = with_code({key: value for key, value in saved.items() if key != KEY}, inner.state_dict())
    try:
        copied.load_state_dict(state)
    except Exception as error:
        raise CheckpointError(
            f"{kind.__name__}.load_state_dict() does not take what its state_dict() returned "
            f"({type(error).__name__}: {error}): this checkpoint would never load. Mend these two methods, or save the "
            "optimizer inside it"
        ) from error
    if digest(copied.state_dict()) != digest(inner.state_dict()):
        log.warning(
            "%s.load_state_dict() does not bring back all of what its state_dict() returned: a run that is resumed "
            "will not go on exactly",
            kind.__name__,
        )


def _twin(optimizer: Any) -> Any:
    """Copy an optimizer with the optimizers inside it, and with the same tensors and modules."""
    inside = _inside(optimizer)
    memo: dict[int, Any] = {id(one): object.__new__(type(one)) for one in inside}
    for one in inside:
        _share(vars(one), memo, set())
    for one in inside:
        vars(memo[id(one)]).update(copy.deepcopy(vars(one), memo))
    return memo[id(optimizer)]


def _inside(optimizer: Any) -> list[Any]:
    found = [optimizer]
    for one in found:
        found += [v for v in vars(one).values() if isinstance(v, Optimizer) and not any(v is seen for seen in found)]
    return found


def _share(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Make deepcopy leave every tensor and module in nested containers as it is."""
    if isinstance(value, (Tensor, nn.Module)):
        memo[id(value)] = value
    elif id(value) not in seen and isinstance(value, (Mapping, list, tuple, set)):
        seen.add(id(value))
        for one in value:
            _share(one, memo, seen)
        for one in value.values() if isinstance(value, Mapping) else ():
            _share(one, memo, seen)
