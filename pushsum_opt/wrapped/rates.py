"""Scaling a local step by its learning rate, where that is the same as scaling what it did to the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["LINEAR", "scale_with_rates", "scaled_rates"]

# Their steps are dz = -lr u: u does not depend on lr, and their state holds no lr. Not Rprop, ASGD and Adafactor, whose
# state or bounds do; and no subclass of anything, for nobody knows what it does with lr.
LINEAR = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.SparseAdam,
    torch.optim.Muon,
)


def scale_with_rates(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether a step of this optimizer is scaled by scaling its learning rates, without a copy of the model.

    Not where a rate is a tensor, which may be part of a captured graph; and not while torch.compile looks on, which
    would compile the step anew for every rate.
    """
    if type(optimizer) not in LINEAR or torch.compiler.is_compiling():
        return False
    return all(isinstance(group["lr"], float | int) for group in optimizer.param_groups)


@contextmanager
def scaled_rates(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Inside, every learning rate is ``factor`` times what it is; what a hook sets meanwhile stays set."""
    before = [(group, group["lr"], group["lr"] * factor) for group in optimizer.param_groups]
    for group, _, scaled in before:
        group["lr"] = scaled
    try:
        yield
    finally:
        for group, rate, scaled in before:
            if group["lr"] is scaled:
                group["lr"] = rate
