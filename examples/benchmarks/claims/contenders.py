"""Who is compared: push-sum in its modes, and the baselines, each of which trains the same model in the same loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from baselines.ad_psgd import ADPSGD
from baselines.d_psgd import DPSGD
from baselines.ddp import distributed
from baselines.local_sgd import LocalSGD
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import pushsum_opt as ps

Options = dict[str, Any]
PUSH_SUM: dict[str, Options] = {
    "sgp": {},
    "sgp int8": {"wire_dtype": "int8"},
    "tau 1": {"staleness": 1},
    "tau 2": {"staleness": 2},
    "async": {"staleness": "unbounded"},
    "corrected": {"adaptive": "corrected"},
    "corrected tau 1": {"adaptive": "corrected", "staleness": 1},
}
BASELINES: dict[str, type[DPSGD] | type[ADPSGD] | type[LocalSGD]] = {
    "d-psgd": DPSGD,
    "ad-psgd": ADPSGD,
    "local sgd": LocalSGD,
}
DDP = {"all-reduce": "plain", "ddp fp16": "fp16", "powersgd": "powersgd", "post-local": "post-local"}
LABELS = {
    "all-reduce": "all-reduce (DDP)",
    "ddp fp16": "DDP, half precision",
    "powersgd": "DDP, PowerSGD",
    "post-local": "DDP, PostLocalSGD",
    "local sgd": "local SGD",
    "d-psgd": "D-PSGD",
    "ad-psgd": "AD-PSGD",
    "sgp": "SGP",
    "sgp int8": "SGP, 8 bits on the wire",
    "tau 1": "SGP, staleness 1",
    "tau 2": "SGP, staleness 2",
    "async": "SGP, unbounded",
    "corrected": "SGP, corrected Adam",
    "corrected tau 1": "corrected, staleness 1",
}
COLOURS = {
    "all-reduce": "#d62728",
    "ddp fp16": "#ff9896",
    "powersgd": "#e377c2",
    "post-local": "#c49c94",
    "local sgd": "#8c564b",
    "d-psgd": "#ff7f0e",
    "ad-psgd": "#bcbd22",
    "sgp": "#9ecae1",
    "sgp int8": "#c6dbef",
    "tau 1": "#08519c",
    "tau 2": "#3182bd",
    "async": "#2ca02c",
    "corrected": "#c5b0d5",
    "corrected tau 1": "#9467bd",
}


@dataclass
class Contender:
    """A way to train.

    Attributes:
        module: what to call for the loss.
        step: to be called after backward.
        average: collective; returns the mean of all ranks' parameters as one vector, and leaves the training as it is.
        late: a context around a rank's steps: ranks that are through wait for the others in a way that suits the mode.
        close: collective.
        weight: by which this rank's parameters count in the mean.
    """

    module: nn.Module
    step: Callable[[], Any]
    average: Callable[[], Tensor]
    late: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    close: Callable[[], None] = lambda: None
    weight: Callable[[], float] = lambda: 1.0


def contender(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> Contender:
    """Return one of ``LABELS`` over all ranks.

    Args:
        model: parameters of float32, the same on all ranks.
        optimizer: of this model. Its learning rate may be changed at any time.
        more: options of a baseline, such as ``every``.
    """
    if name in DDP:
        if not torch.distributed.is_initialized():
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ.setdefault("MASTER_PORT", "29555")
            comm = MPI.COMM_WORLD
            torch.distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.size)
        module, stepped = distributed(model, optimizer, DDP[name], **more)
        return Contender(module, stepped.step, lambda: vector_mean(model))
    if name in BASELINES:
        baseline = BASELINES[name](optimizer, model, **more)
        return Contender(model, baseline.step, lambda: torch.from_numpy(baseline.average()), close=baseline.close)
    wrapped = ps.PushSumOptimizer(optimizer, model, **PUSH_SUM[name], **more)

    def average() -> Tensor:
        with wrapped.averaged():
            return parameters_to_vector(model.parameters()).detach().clone()

    late = wrapped.join if name == "async" else contextlib.nullcontext
    return Contender(model, wrapped.step, average, late, wrapped.close, lambda: wrapped.push_weight)


def vector_mean(model: nn.Module) -> Tensor:
    """Collective. PostLocalSGD's ranks differ between two averages; those of other kinds of DDP do not."""
    vector = parameters_to_vector(model.parameters()).detach().clone()
    torch.distributed.all_reduce(vector)
    return vector / torch.distributed.get_world_size()
