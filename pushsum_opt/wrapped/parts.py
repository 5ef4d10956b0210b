"""The wrapped optimizer and its model, and which of their tensors travel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..algorithms import Algorithm
from ..errors import ConfigurationError
from ..push_sum import PushSum
from . import adaptive as adam
from .points import Points, check_names
from .tensors import Tensors

__all__ = ["Parts", "check_arguments", "check_wrappable"]


class Parts:
    """What is wrapped.

    Args:
        optimizer, model, buffers, gossip_state, adaptive: as in :class:`~pushsum_opt.PushSumOptimizer`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module | None,
        buffers: str | None,
        gossip_state: Sequence[str],
        adaptive: str | None,
    ) -> None:
        self.optimizer = optimizer
        self.model = model
        self.buffers = buffers or ("local" if model is None else "average")
        names = check_names(gossip_state)
        corrects = adam.check(adaptive, optimizer, names)
        self.adaptive_hint = adam.hint(adaptive, optimizer, names)
        """What to tell a user who has not chosen ``adaptive``, if anything."""
        self.points = Points(optimizer, names, adam.moments_of(corrects))
        """The optimizer's state that travels."""
        self.corrected = adam.Corrected(optimizer, self.points) if corrects else None
        """Makes the steps with ``adaptive="corrected"``; None: the optimizer makes them alone."""
        self.tensors = Tensors(optimizer, model, with_buffers=self.buffers == "gossip", points=self.points)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Wrap another optimizer from now on."""
        check_wrappable(optimizer)
        if self.corrected is not None:
            adam.check("corrected", optimizer, self.points.points)
            self.corrected.follow(optimizer)
        self.optimizer = self.tensors.optimizer = self.points.optimizer = optimizer


def check_wrappable(optimizer: Any) -> None:
    """Raise TypeError for what is no torch optimizer, or is wrapped already."""
    if isinstance(getattr(optimizer, "push_sum", None), PushSum):
        raise TypeError("optimizer is wrapped already: expected the torch optimizer inside, optimizer.optimizer")
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(
            f"optimizer: expected a torch.optim.Optimizer, got {kind}. If it wraps an optimizer, make its class a "
            "subclass of torch.optim.Optimizer"
        )


def check_arguments(
    optimizer: Any, model: Any, within_host: Any, gossip_every: Any, algorithm: Any, buffers: Any
) -> None:
    """Raise TypeError or ConfigurationError for an argument that can never be used, whatever the others are."""
    check_wrappable(optimizer)
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module or None, got {type(model).__name__}")
    if within_host not in (None, "gradients", "ddp", "fsdp"):
        raise ConfigurationError(f"within_host={within_host!r}: expected 'gradients', 'ddp', 'fsdp' or None")
    if isinstance(gossip_every, bool) or not isinstance(gossip_every, int) or gossip_every < 1:
        raise ConfigurationError(f"gossip_every={gossip_every!r}: expected an int of at least 1")
    if algorithm is not None and not isinstance(algorithm, Algorithm):
        raise ConfigurationError(f"algorithm={algorithm!r}: expected one of pushsum_opt.algorithms, or None")
    if algorithm is not None and algorithm.bound:
        raise ConfigurationError(f"algorithm={algorithm!r} belongs to another optimizer: make a new one for each")
    if buffers not in (None, "local", "average", "gossip"):
        raise ConfigurationError(f"buffers={buffers!r}: expected 'local', 'average', 'gossip' or None")
