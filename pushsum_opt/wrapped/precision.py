"""Mixed precision: what a GradScaler asks of the optimizer that it steps.

An inf is local to one rank, and a rank that skips step() would leave its peers waiting. So the scaler is asked to call
step() always, as it does for torch's fused optimizers, and only the local update is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import _torch_compat

__all__ = ["amp_scaling"]


@contextmanager
def amp_scaling(
    wrapper: torch.optim.Optimizer, inner: torch.optim.Optimizer, average: Callable[[bool], bool] | None
) -> Iterator[bool]:
    """Deal with what a GradScaler has set on the wrapper; yield whether the local update must be skipped.

    Args:
        average: averages the gradients inside a host, where that is to be done before the update. Called with whether
            this rank must skip; returns whether any rank of the host must.
    """
    found_inf: Any = getattr(wrapper, "found_inf", None)
    grad_scale: Tensor | None = getattr(wrapper, "grad_scale", None)
    if average is not None:
        # Every rank of the host has a scale of its own: unscale before averaging, and skip on all or on none.
        skip = isinstance(found_inf, Tensor) and bool(found_inf.item())
        if isinstance(found_inf, Tensor) and not skip:
            _unscale(inner, grad_scale)
        yield average(skip)
    elif not isinstance(found_inf, Tensor):  # no scaler, or the int 0 where no parameter has a gradient
        yield False
    elif _torch_compat.supports_amp_scaling(inner):
        fused: Any = inner
        fused.found_inf, fused.grad_scale = found_inf, grad_scale
        try:
            yield False
        finally:
            del fused.found_inf, fused.grad_scale
    elif found_inf.item():
        yield True
    else:
        _unscale(inner, grad_scale)
        yield False


def _unscale(optimizer: torch.optim.Optimizer, grad_scale: Tensor | None) -> None:
    if grad_scale is None:  # the user has called scaler.unscale_()
        return
    inverse = grad_scale.double().reciprocal().float()  # as GradScaler.unscale_ does
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                grad = parameter.grad
                (grad._values() if grad.is_sparse else grad).mul_(inverse.to(grad.device))
