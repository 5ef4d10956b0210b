"""The start of a run: all ranks get the same values, rank 0 says what runs, and warns where the set-up looks wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .. import transport
from ..algorithms import Algorithm
from ..arguments import OnLoss
from ..hosts import Hosts
from ..job import ending, world
from ..log import log
from ..push_sum import PushSum, WrapperOptions
from ..push_sum.continuing import survival_of
from ..start import line as start_line
from .order import order_by_values
from .parts import Parts
from .start import copy_start

__all__ = ["announce", "make_hosts", "start_alike", "warn_about_set_up", "watch_first_step", "wrapper_options"]


def make_hosts(within_host: str, comm: Any, data_weight: float, timeout: float, on_loss: OnLoss) -> Hosts:
    """Collective. Return this rank's host and lane."""
    comm = world.communicator(comm)
    ending.stop_all_on_error()
    sharded, survival = within_host == "fsdp", survival_of(comm, on_loss, timeout)
    return Hosts(
        comm,
        data_weight=data_weight,
        sharded=sharded,
        timeout=timeout,
        label=survival.label,
        seen=survival.learn_hosts,
    )


def survive(begin: Callable[[], None], comm: Any, on_loss: OnLoss, timeout: float) -> None:
    """Collective. Begin; where ranks die meanwhile and the others are to go on, these begin again."""
    comm = world.communicator(comm)
    ending.stop_all_on_error()
    transport.check(comm)
    survival_of(comm, on_loss, timeout).together(begin)


def wrapper_options(
    owner: Any, parts: Parts, algorithm: Algorithm, gossip_every: int, within_host: str | None
) -> WrapperOptions:
    """Return what the wrapper adds to its push-sum.

    Where the arguments differ between ranks, tensors differ as well: so these are compared first.
    """
    alike = {
        "gossip_every": str(gossip_every),
        "algorithm": repr(algorithm),
        "buffers": repr(parts.buffers),
        "within_host": repr(within_host),
        "gossip_state": repr(parts.points.points),
        "adaptive": repr("plain" if parts.corrected is None else "corrected"),
        **parts.tensors.roles,
    }
    leave_out = parts.tensors.leave_out_together if parts.buffers == "gossip" else None
    return WrapperOptions(owner, parts.tensors.exchanged_buffers, alike, leave_out)


@torch.inference_mode(False)  # later steps, outside of inference mode, write to the state that is made here
def start_alike(parts: Parts, push_sum: PushSum, algorithm: Algorithm) -> None:
    """Collective. Give rank 0's parameters, buffers and optimizer state to every rank that differs."""
    # First inside every host, then between hosts: rank 0's values reach all.
    for channel in (*push_sum.member.place.host.replicas, push_sum.member.place.channel):
        order = order_by_values(channel, parts.tensors.named_parameters)
        if order is not None and channel.rank == 0:
            log.warning("%s", order)
        copy_start(channel, parts.optimizer, parts.tensors.all)
    parts.points.adopt()
    if parts.corrected is not None:
        parts.corrected.bind(push_sum)
    algorithm.belong_to(push_sum, parts.optimizer.param_groups)


def announce(parts: Parts, push_sum: PushSum, within_host: str | None, gossip_every: int) -> None:
    """Collective. Rank 0 logs one line that says what runs where and what it costs; then warnings and hints."""
    hosts = start_line.hosts(push_sum.member.place.channel, torch.get_num_threads(), push_sum.member.place.host.lanes)
    if not push_sum.member.place.speaks:
        return
    moments = None if parts.corrected is None else parts.corrected.nbytes()
    has_model = parts.model is not None
    log.info("%s", start_line.compose(push_sum, hosts, has_model=has_model, moments=moments, steps=gossip_every))
    if parts.adaptive_hint is not None and push_sum.participants > 1:
        log.info("%s", parts.adaptive_hint)
    crowd = start_line.crowded_links(push_sum, hosts) if within_host is None else None
    if crowd is not None:
        log.warning("%s", crowd)
    if parts.tensors.left_out:
        named = "; ".join(f"{name} {why}" for name, why in parts.tensors.left_out.items())
        log.info("buffers that stay on each rank, and are not mixed: %s", named)


def warn_about_set_up(parts: Parts, size: int, within_host: str | None) -> None:
    """Warn of a set-up that makes no sense. The warnings name the line that calls the constructor.

    Args:
        size: the number of participants of the gossip.
    """
    if size == 1:
        return
    if isinstance(parts.optimizer, torch.optim.LBFGS):
        warnings.warn(
            f"LBFGS on {size} ranks: its curvature pairs see the gossip between steps, which is not the change "
            "that its gradients explain; prefer a first-order optimizer",
            stacklevel=3,
        )
    parallel = isinstance(parts.model, nn.parallel.DistributedDataParallel) and within_host is None
    if parallel and torch.distributed.get_world_size() == size:
        warnings.warn(
            f"the model is wrapped in DistributedDataParallel over the same {size} ranks: gradients are averaged "
            "by all-reduce and parameters again by gossip. Use one of the two",
            stacklevel=3,
        )


def watch_first_step(push_sum: PushSum) -> None:
    """Have every rank compare its first step with its in-peers'; rank 0 warns where two are equal."""
    if push_sum.participants > 1:
        speaks = push_sum.member.place.speaks
        push_sum.member.first_step.watch(partial(_warn_about_shards, push_sum.rank) if speaks else _say_nothing)


def _say_nothing(peer: int) -> None: ...


def _warn_about_shards(rank: int, peer: int) -> None:
    log.warning(
        "rank %d: its first local step and rank %d's are equal, bit for bit: both train on the same data. Give each "
        "rank its own shard: DistributedSampler(dataset, num_replicas=ps.size(), rank=ps.rank())",
        rank,
        peer,
    )
