"""An optimizer's state without its devices, to be sent; and on the devices of this rank again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..value_digest import PLAIN, belongs_to_one_rank

__all__ = ["for_here", "to_send"]


class _Yours:
    """Stands for a value that does not travel: each rank keeps its own."""


def to_send(value: Any) -> Any:
    """Return a copy of the structure with tensors on the host, and a mark where a value stays with its rank."""
    if isinstance(value, Tensor):
        plain = type(value) in (Tensor, torch.nn.Parameter) and not value.is_meta
        return value.detach().cpu() if plain else value
    if type(value) in PLAIN:
        return value
    if type(value) in (list, tuple):
        return type(value)(to_send(one) for one in value)
    if type(value) is dict:
        return {key: to_send(one) for key, one in value.items()}
    return _Yours() if belongs_to_one_rank(value) else value


def for_here(received: Any, mine: Any) -> Any:
    """Return what was received with tensors on the devices of mine, and my own values where the sender kept its own.

    A tensor that has no counterpart in mine stays on the host.
    """
    if isinstance(received, Tensor):
        apart = isinstance(mine, Tensor) and not mine.is_meta and not received.is_meta
        return received.to(mine.device) if apart else received
    if type(received) is dict:
        others = mine if isinstance(mine, Mapping) else {}
        kept = {key: one for key, one in received.items() if not isinstance(one, _Yours) or key in others}
        return {key: for_here(one, others.get(key)) for key, one in kept.items()}
    if type(received) in (list, tuple):
        own: list[Any] = list(mine) if isinstance(mine, list | tuple) else []
        own += [None] * (len(received) - len(own))
        return type(received)(for_here(one, other) for one, other in zip(received, own, strict=False))
    return mine if isinstance(received, _Yours) else received
