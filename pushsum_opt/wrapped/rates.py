"""Scales a local step by its learning rate, where that is the same as scaling its change of the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .. import _torch_compat

__all__ = ["LINEAR", "scale_with_rates", "scaled_rates"]

# Their steps are dz = -lr u, where u does not depend on lr, and their state holds no lr. Rprop, ASGD and Adafactor are
# not among them: their state or bounds depend on lr. Subclasses are not either, as they may do anything with lr.
NAMES = (
    "SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "SparseAdam", "Muon"
)  # fmt: skip
LINEAR = tuple(getattr(torch.optim, name) for name in NAMES if hasattr(torch.optim, name))


def scale_with_rates(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether a step of this optimizer is scaled by scaling its learning rates, without a copy of the model.

    False where a rate is a tensor, as it may be part of a captured graph; where hooks run around the step, as they may
    set rates; and inside torch.compile, which would compile the step anew for every rate.
    """
    if type(optimizer) not in LINEAR or torch.compiler.is_compiling() or _torch_compat.has_step_hooks(optimizer):
        return False
    return all(isinstance(group["lr"], float | int) for group in optimizer.param_groups)


@contextmanager
def scaled_rates(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Inside, every learning rate is ``factor`` times what it is."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
