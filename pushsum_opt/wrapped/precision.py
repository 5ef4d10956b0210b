"""Mixed precision: what a GradScaler asks of the optimizer that it steps.

An inf is found on one rank alone. If that rank skipped step(), its peers would wait. So the scaler is made to call
step() always, as it does for torch's fused optimizers, and only the local update is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import _torch_compat

__all__ = ["amp_scaling"]


class AverageNow(Protocol):
    """What averages inside a host; :meth:`.host_gradients.HostGradients.average_now` is one."""

    def __call__(self, call: str, *, skips: bool = ..., scale: float = ...) -> bool: ...


@contextmanager
def amp_scaling(
    wrapper: torch.optim.Optimizer,
    inner: torch.optim.Optimizer,
    average_now: AverageNow | None,
    *,
    by_hand: bool = False,
) -> Iterator[bool]:
    """Act on what a GradScaler has set on the wrapper. Yields whether the local update must be skipped.

    Args:
        average_now: averages inside a host what has not been averaged; None: nothing has to be averaged before the
            update. Called with the call, whether this rank must skip and its scale; returns whether any rank of the
            host must skip.
        by_hand: unscale the gradients here, even where the inner optimizer could do it.
    """
    found_inf: Any = getattr(wrapper, "found_inf", None)
    grad_scale: Tensor | None = getattr(wrapper, "grad_scale", None)
    if average_now is not None:
        # All ranks of the host skip, or none. Gradients are unscaled before they are averaged.
        skip, scale = False, math.nan
        if isinstance(found_inf, Tensor):
            skip = bool(found_inf.item())
            scale = math.nan if grad_scale is None else float(grad_scale.item())
            if not skip:
                _unscale(inner, grad_scale)
        yield average_now("step()", skips=skip, scale=scale)
    elif not isinstance(found_inf, Tensor):  # no scaler, or the int 0 where no parameter has a gradient
        yield False
    elif _torch_compat.supports_amp_scaling(inner) and not by_hand:
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
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                grad = parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
                alike.setdefault((grad.device, grad.dtype), []).append(grad)
    for (device, _), grads in alike.items():
        torch._foreach_mul_(grads, inverse.to(device))
