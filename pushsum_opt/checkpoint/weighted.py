"""The exact weighted average of the parts of a checkpoint, mass in flight included.

sum_i (w_i z_i + r_i + sum of m z_j in flight to i) / sum of all mass, in float64. What is not exchanged
(mainly floating buffers) is averaged with the data weights, as inside averaged(). What is not floating, and with
``buffers="local"`` all that is not exchanged, is taken from one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..tensor_kinds import is_floating
from .part import KEY

__all__ = ["WeightedSum"]


class WeightedSum:
    """Adds up numerators of several ranks. Its totals can be summed over processes, too.

    Args:
        like: any part of the checkpoint: what there is to add up.
    """

    def __init__(self, like: Mapping[str, Any]) -> None:
        self.weights = torch.zeros(2, dtype=torch.float64)
        """The sums of the mass, and of the data weights."""
        self.exchanged = {name: _zeros(value) for name, value in _exchanged(like).items()}
        self.local = {key: _zeros(value) for key, value in _local(like).items()}

    def add(self, part: Mapping[str, Any]) -> None:
        """Add one rank's part.

        The ranks of a host that is one participant hold the same parameters, which count once. Of messages in flight
        and of residuals each rank has those of its lane, and 0 elsewhere. Each rank has its own buffers.
        """
        state = part["optimizer"][KEY]
        weight, data_weight = state["push_weight"], state["data_weight"] * part["share"]
        messages = [message for item in state["in_flight"] for message in item["messages"]]
        self.weights[0] += mass_of(part)
        self.weights[1] += data_weight
        for name, value in _exchanged(part).items():
            total = self.exchanged[name]
            if part["place"][1] == 0:
                total.add_(_real_doubles(value), alpha=weight)
            if name in state["residuals"]:
                total += state["residuals"][name].double()
            for message in messages:
                if name in message["tensors"]:
                    total.add_(message["tensors"][name].double(), alpha=message["mass"])
        for key, value in _local(part).items():
            self.local[key].add_(_real_doubles(value), alpha=data_weight)

    def over_ranks(self, sum_in_place: Callable[[Tensor], None]) -> None:
        """Collective. Sum all totals over processes with a function that sums one flat float64 tensor in place."""
        for total in (self.weights, *self.exchanged.values(), *self.local.values()):
            sum_in_place(total.view(-1))

    def model(self, like: Mapping[str, Any]) -> dict[str, Any]:
        """Return the averaged state of the model; what cannot be averaged is as in ``like``."""
        tied: dict[str, Tensor] = {}
        averaged = {}
        for key, value in like["model"].items():
            name = like["names"].get(key)
            if name is not None:
                averaged[key] = tied.setdefault(name, _narrow(self.exchanged[name] / self.weights[0], value))
            elif key in self.local:
                averaged[key] = _narrow(self.local[key] / self.weights[1], value)
            else:
                averaged[key] = value
        return averaged

    def parameters(self, like: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the averages of what is exchanged and not in the model."""
        return {n: _narrow(self.exchanged[n] / self.weights[0], value) for n, value in like["parameters"].items()}

    def residuals(self, like: Mapping[str, Any], data_weight: float) -> dict[str, Tensor]:
        """Return what half-precision parameters cannot hold of the average, so that x = a z + r is exactly a mean."""
        found = {}
        for name, value in _exchanged(like).items():
            if value.dtype in (torch.float16, torch.bfloat16):
                mean = self.exchanged[name] / self.weights[0]
                found[name] = (data_weight * (mean - _real_doubles(_narrow(mean, value)))).float()
        return found


def mass_of(part: Mapping[str, Any]) -> float:
    """Return the push weight of a part, and the mass in flight to it; 0 for all ranks of a host but one."""
    if part["place"][1] != 0:
        return 0.0
    state = part["optimizer"][KEY]
    masses = [message["mass"] for item in state["in_flight"] for message in item["messages"]]
    return float(state["push_weight"] + sum(masses))


def _exchanged(part: Mapping[str, Any]) -> dict[str, Tensor]:
    first = {name: part["model"][key] for key, name in reversed(part["names"].items())}
    return {**first, **part["parameters"]}


def _local(part: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in part["model"].items()
        if part["buffers"] == "average"
        and key not in part["names"]
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and is_floating(value)
    }


def _real_doubles(value: Tensor) -> Tensor:
    return (torch.view_as_real(value) if value.is_complex() else value).double()


def _zeros(value: Tensor) -> Tensor:
    real = torch.view_as_real(value) if value.is_complex() else value
    return torch.zeros(real.shape, dtype=torch.float64)


def _narrow(wide: Tensor, like: Tensor) -> Tensor:
    return (torch.view_as_complex(wide) if like.is_complex() else wide).to(like.dtype)
