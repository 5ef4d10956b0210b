"""DistributedDataParallel: as it is, and with what torch itself offers to send less.

plain        float32 gradients, all-reduced in buckets during backward
fp16         the same in half precision (torch's hook for bfloat16 refuses to work without NCCL)
powersgd     PowerSGD (Vogels et al. 2019): gradients as products of thin matrices, with error feedback
post-local   PostLocalSGD (Lin et al. 2020): gradients until a step, then averages of models every few steps
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

KINDS = ("plain", "fp16", "powersgd", "post-local")


def distributed(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    kind: str = "plain",
    *,
    warm_up: int = 100,
    every: int = 8,
    low_rank: int = 1,
) -> tuple[nn.parallel.DistributedDataParallel, torch.optim.Optimizer]:
    """Return the module to call and the optimizer to step. A process group must have been made.

    Args:
        kind: one of ``KINDS``.
        warm_up: steps with plain gradients before PowerSGD and PostLocalSGD begin (torch demands 2 for PowerSGD).
        every: steps between two averages of PostLocalSGD.
        low_rank: of PowerSGD's matrices.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    wrapped = nn.parallel.DistributedDataParallel(model)
    if kind == "fp16":
        wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif kind == "powersgd":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=low_rank, start_powerSGD_iter=warm_up)
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif kind == "post-local":
        from torch.distributed.optim import PostLocalSGDOptimizer  # compiles optimizers, and warns that this is old

        local = post_localSGD_hook.PostLocalSGDState(
            dist.group.WORLD, None, start_localSGD_iter=warm_up, post_local_gradient_allreduce=False
        )
        wrapped.register_comm_hook(local, post_localSGD_hook.post_localSGD_hook)
        optimizer = PostLocalSGDOptimizer(optimizer, PeriodicModelAverager(every, warmup_steps=warm_up))
    return wrapped, optimizer
