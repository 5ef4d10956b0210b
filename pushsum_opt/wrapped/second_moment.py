"""What Adam's second moment must be where a rank sees its own gradient alone, and how torch's Adam is made to keep it.

All-reduce squares the mean gradient. That square is, on average, (1 - theta) mu^2 + theta E[g^2]: mu is the mean
gradient, g the gradient of one rank, and theta = sum over ranks of (a_i / n)^2, which is 1 / n with equal data weights.
A first moment m that is mixed over ranks estimates mu. So:

    m <- b1 m + (1 - b1) f g                                f = a_i / w, as z moves by f dz
    v <- b2 v + (1 - b2) ((1 - theta) m_hat^2 + theta g^2)  m_hat = m / (1 - b1^t)

torch adds (1 - b1) g and (1 - b2) g^2 by itself. What is added here beforehand makes the sums come out as above:

    m += ((1 - b1) / b1) (f - 1) g
    v += ((1 - b2) / b2) (1 - theta) (m_hat^2 - g^2)

v may be below 0 in between. After torch's update it is not, and nothing takes its root before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tensor_kinds import local_part

__all__ = ["Moments", "Rule", "correct"]

ELEMENTS_AT_ONCE = 1 << 24
"""Elements that are corrected at a time. Each takes 4 or 8 bytes of memory for a moment."""
SMALLEST_V = 1e-36
"""Added to v, so that v does not end below 0 by rounding where g^2 is too small for its dtype."""


@dataclass(frozen=True)
class Rule:
    """The constants of one group of parameters in one step."""

    beta1: float
    beta2: float
    weight_decay: float
    """Of a decay that is part of the gradient; 0 where it acts on the parameters alone."""
    maximize: bool
    theta: float
    fresh: float
    """f = a_i / w: by how much this rank's own gradient counts in m."""


@dataclass(frozen=True)
class Moments:
    """One parameter, its gradient and its moments. Complex numbers count as pairs of real ones, as they do in torch."""

    parameter: Tensor
    gradient: Tensor
    m: Tensor
    v: Tensor
    step: Tensor | float
    """The steps taken before this one, t - 1."""


def correct(rule: Rule, moments: Sequence[Moments]) -> None:
    """Prepare m and v for torch's update with the gradients as they are now."""
    for part in _parts(moments):
        _correct(rule, part)


def _parts(moments: Sequence[Moments]) -> Iterator[list[Moments]]:
    part: list[Moments] = []
    room = ELEMENTS_AT_ONCE
    for one in moments:
        if part and one.m.numel() > room:
            yield part
            part, room = [], ELEMENTS_AT_ONCE
        part.append(one)
        room -= one.m.numel()
    if part:
        yield part


def _correct(rule: Rule, moments: Sequence[Moments]) -> None:
    m, v = [_real(one.m) for one in moments], [_real(one.v) for one in moments]
    g = [_real(one.gradient) for one in moments]
    if rule.maximize:
        g = list(torch._foreach_neg(g))
    if rule.weight_decay:
        g = list(torch._foreach_add(g, [_real(one.parameter) for one in moments], alpha=rule.weight_decay))
    if rule.fresh != 1.0:
        torch._foreach_add_(m, g, alpha=(1 - rule.beta1) / rule.beta1 * (rule.fresh - 1.0))
    mean = list(torch._foreach_mul(m, rule.beta1))
    torch._foreach_add_(mean, g, alpha=1 - rule.beta1)
    _unbias(mean, rule.beta1, [one.step for one in moments])
    share = (1 - rule.beta2) / rule.beta2 * (1 - rule.theta)
    torch._foreach_addcmul_(v, mean, mean, share)
    torch._foreach_addcmul_(v, g, g, -share)
    torch._foreach_add_(v, SMALLEST_V)


def _unbias(mean: tuple[Tensor, ...] | list[Tensor], beta1: float, steps: Sequence[Tensor | float]) -> None:
    """Divide by 1 - b1^t. A count of steps on a device is not read, because that would wait for the device."""
    if all(not isinstance(step, Tensor) or step.device.type == "cpu" for step in steps):
        torch._foreach_div_(mean, [1 - beta1 ** (float(step) + 1) for step in steps])
        return
    for one, step in zip(mean, steps, strict=True):
        one.div_(1 - beta1 ** (step + 1))


def _real(tensor: Tensor) -> Tensor:
    local = local_part(tensor).detach()
    return torch.view_as_real(local) if local.is_complex() else local
