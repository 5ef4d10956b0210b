"""Two tensors beside every parameter, for algorithms with an outer step: slow weights and their momentum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..push_sum import PushSum
from ..tensor_kinds import local_part
from .base import Algorithm

__all__ = ["OuterStep", "Slow", "SlowWeights"]


@dataclass(frozen=True)
class Slow:
    """This rank's part of one parameter, and what is kept beside it."""

    now: Tensor
    """As the last local step left it: writing to it writes to the parameter."""

    weights: Tensor
    """The slow weights: what the parameter was after the last outer step."""

    momentum: Tensor
    group: dict[str, Any]
    """The parameter's group in the wrapped optimizer, with its learning rate."""


class SlowWeights:
    """Keeps the two tensors of every parameter, follows changes of the groups, and goes into checkpoints."""

    def __init__(self) -> None:
        # By id of the parameter, because groups may change; each entry holds its parameter too. In the order of groups.
        self._held: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # parameter, slow weights, momentum
        self._loaded: list[tuple[Tensor, Tensor]] = []  # from a file, until the next outer step

    def begin(self, param_groups: list[dict[str, Any]]) -> None:
        """Start at the parameters as they are now, without momentum."""
        self._held = {id(p): (p, x.clone(), torch.zeros_like(x)) for p, x, _ in _parameters(param_groups)}

    def of(self, param_groups: list[dict[str, Any]]) -> list[Slow]:
        """Return every parameter with its tensors. One that is new starts here, as all do after a file without any."""
        loaded, self._loaded = iter(self._loaded), []
        before, self._held = self._held, {}
        found = []
        for parameter, x, group in _parameters(param_groups):
            if id(parameter) in before:
                weights, momentum = before[id(parameter)][1:]
            else:
                weights, momentum = next(loaded, None) or (x.clone(), torch.zeros_like(x))
            weights, momentum = weights.to(x.device), momentum.to(x.device)  # from a file, or the model has moved
            self._held[id(parameter)] = parameter, weights, momentum
            found.append(Slow(x, weights, momentum, group))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what must be saved. Local."""
        pairs = self._loaded or [(weights, momentum) for _, weights, momentum in self._held.values()]
        return {"before": [weights for weights, _ in pairs], "slow": [momentum for _, momentum in pairs]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned. Local.

        Without an entry, as in a file of another optimizer, everything begins at the next outer step.
        """
        self._held = {}
        pairs = zip(state_dict.get("before", ()), state_dict.get("slow", ()), strict=True)
        self._loaded = [(weights.clone(), momentum.clone()) for weights, momentum in pairs]


class OuterStep(Algorithm):
    """An algorithm that keeps slow weights, and moves them by itself."""

    moves_alone = True

    def __init__(self) -> None:
        self._slow = SlowWeights()

    def bind(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        self._slow.begin(param_groups)

    def state_dict(self) -> dict[str, Any]:
        return self._slow.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._slow.load_state_dict(state_dict)


def _parameters(param_groups: list[dict[str, Any]]) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Return every parameter, once, with this rank's part of it and its group."""
    found: dict[int, tuple[Tensor, Tensor, dict[str, Any]]] = {}
    for group in param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = (parameter, local_part(parameter).detach(), group)
    return list(found.values())
