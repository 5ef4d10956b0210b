"""Averaging gradients over the ranks of a host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .groups import Hosts

__all__ = ["GradientAverage", "is_plain", "reduces"]

HOST_RUN_ELEMENTS = 1 << 22
"""Gathered at a time on the host: 16 MiB, which stay in the cache of the processor."""
DEVICE_RUN_ELEMENTS = 1 << 26
"""Gathered at a time on a device: 256 MiB, because each run costs a copy each way and a wait."""
SUM_AT_ONCE = 1 << 22
"""Elements that are summed at a time."""
WHAT = "averaging gradients inside the host"


@dataclass
class GradientAverage:
    """Replaces gradients by their weighted sum over the ranks of a host.

    Gradients are gathered into one flat buffer per device and width, in runs of bounded size; a run on a device costs
    one copy to the host and one back, through pinned memory. Where the user's process group holds exactly the ranks
    of this host and has NCCL for the device, it sums the buffers there and nothing is copied.
    """

    hosts: Hosts
    _pinned: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor], round: int, share: float, on_device: bool) -> None:
        """Collective over a host. A parameter without a gradient counts as 0, and has one afterwards.

        Args:
            parameters: the same on every rank, in the same order.
            share: what this rank's gradients are multiplied by; the shares of a host sum to 1.
            on_device: every rank of the host leaves the sum to torch.distributed, see :func:`reduces`.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for run in _runs(parameters):
            flat = torch.cat([grad.reshape(-1).to(_sum_dtype(grad)) for grad in run]).mul_(share)
            if on_device and not flat.is_cpu:
                torch.distributed.all_reduce(flat)
            elif flat.is_cpu:
                self._sum(flat, round)
            else:
                host = self._host_buffer(flat)
                host.copy_(flat, non_blocking=flat.is_cuda)
                if flat.is_cuda:
                    torch.cuda.current_stream(flat.device).synchronize()
                self._sum(host, round)
                flat.copy_(host, non_blocking=flat.is_cuda)
            _scatter(flat, run)

    def _sum(self, flat: Tensor, round: int) -> None:
        values = flat.numpy()
        for start in range(0, values.size, SUM_AT_ONCE):
            self.hosts.sum(values[start : start + SUM_AT_ONCE], round, WHAT)

    def _host_buffer(self, flat: Tensor) -> Tensor:
        """Return pinned host memory. Every run uses the same, so the next run waits for this one."""
        held = self._pinned.get(flat.dtype)
        if held is None or held.numel() < flat.numel():
            held = self._pinned[flat.dtype] = torch.empty(flat.numel(), dtype=flat.dtype, pin_memory=flat.is_cuda)
        return held[: flat.numel()]


def reduces(hosts: Hosts, parameters: Sequence[Tensor]) -> bool:
    """Tell whether torch.distributed can sum this rank's gradients where they lie.

    It can where all gradients are on a device, and the default process group has NCCL for it and holds the ranks of
    this host. A group of all ranks of the job is not split here: that would be collective over the job, and costs
    communicators.
    """
    devices = {parameter.device.type for parameter in parameters}
    if len(devices) != 1 or not devices <= _BACKENDS.keys():
        return False
    distributed: Any = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    if (distributed.get_rank(), distributed.get_world_size()) != (hosts.lane, hosts.lanes):
        return False
    return f"{next(iter(devices))}:{_BACKENDS[next(iter(devices))]}" in _group_backends()


_BACKENDS = {"cuda": "nccl"}  # device types whose gradients may be left to a backend of torch.distributed


def _group_backends() -> str:
    """Return the default group's backends by device type, as in ``cpu:gloo,cuda:nccl``."""
    return str(torch.distributed.get_backend_config())


def is_plain(grad: Tensor | None) -> bool:
    """Tell whether a gradient can be gathered into a flat buffer."""
    return grad is None or grad.layout == torch.strided


def _runs(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in runs of one device and width."""
    runs: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        assert parameter.grad is not None
        grad = torch.view_as_real(parameter.grad) if parameter.grad.is_complex() else parameter.grad
        kind = grad.device, _sum_dtype(grad)
        run = runs.setdefault(kind, [])
        if run and sum(g.numel() for g in run) + grad.numel() > (
            HOST_RUN_ELEMENTS if grad.is_cpu else DEVICE_RUN_ELEMENTS
        ):
            yield run
            run = runs[kind] = []
        run.append(grad)
    yield from runs.values()


def _scatter(flat: Tensor, grads: list[Tensor]) -> None:
    parts = torch.split(flat, [grad.numel() for grad in grads])
    torch._foreach_copy_(grads, [part.view(grad.shape) for grad, part in zip(grads, parts, strict=True)])


def _sum_dtype(grad: Tensor) -> torch.dtype:
    return torch.float64 if grad.dtype == torch.float64 else torch.float32
