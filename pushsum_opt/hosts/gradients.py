"""Averaging gradients over the ranks of a host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigurationError
from .groups import Hosts

__all__ = ["average_gradients"]

SPAN = 1 << 22  # elements that are summed at a time
WHAT = "averaging gradients inside the host"


@torch.no_grad()
def average_gradients(hosts: Hosts, parameters: Sequence[Tensor], round: int, *, skip: bool) -> bool:
    """Collective over a host. Replace gradients by their average over its ranks, weighted by their data weights.

    A parameter that has no gradient on some ranks counts as 0 there; where none has one, it stays without.

    Args:
        parameters: the same on every rank, in the same order.
        skip: this rank found an inf or nan and will not step.

    Returns:
        Whether any rank of the host will not step; gradients are left as they are then.

    Raises:
        ConfigurationError: a gradient is sparse.
    """
    here = np.array([float(parameter.grad is not None) for parameter in parameters] + [float(skip)])
    hosts.sum(here, round, WHAT)
    if here[-1]:
        return True
    members = [parameter for parameter, count in zip(parameters, here[:-1], strict=True) if count]
    for parameter in members:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        elif parameter.grad.is_sparse:
            raise ConfigurationError(
                f"rank {hosts.rank}, round {round}: a gradient of shape {list(parameter.shape)} is sparse and cannot "
                "be averaged inside the host: use Embedding(sparse=False), or within_host='ddp'"
            )
    for run in _runs(members):
        _average(hosts, run, round)
    return False


def _runs(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in runs of one dtype with about SPAN elements each."""
    run: list[Tensor] = []
    for parameter in parameters:
        assert parameter.grad is not None
        grad = torch.view_as_real(parameter.grad) if parameter.grad.is_complex() else parameter.grad
        if run and (_wide(run[0]) != _wide(grad) or sum(g.numel() for g in run) + grad.numel() > SPAN):
            yield run
            run = []
        run.append(grad)
    if run:
        yield run


def _average(hosts: Hosts, grads: list[Tensor], round: int) -> None:
    flat = torch.cat([grad.reshape(-1).to("cpu", _wide(grad)) for grad in grads]).mul_(hosts.share).numpy()
    for start in range(0, flat.size, SPAN):
        hosts.sum(flat[start : start + SPAN], round, WHAT)
    parts = torch.split(torch.from_numpy(flat), [grad.numel() for grad in grads])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view(grad.shape))


def _wide(grad: Tensor) -> torch.dtype:
    return torch.float64 if grad.dtype == torch.float64 else torch.float32
