"""Optimizer state that travels with the parameters: points in parameter space, such as schedule-free's z, and moments.

Most optimizers make their state in their first step; where a parameter has no gradient on a rank, later or never. So
each named entry of each parameter has a *slot*: a tensor of ours that is exchanged from the first round on. Until the
optimizer makes the entry, the slot holds what the entry will start from (the parameter; 0 for a moment), mixed with
what peers have sent. Then the slot takes the value of the entry, and replaces it in the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import collectives
from ..errors import ConfigurationError
from ..interrupts import held_back
from ..push_sum import PushSum

__all__ = ["HALF", "Points", "averaged", "check_names", "entries_of"]

HALF = (torch.float16, torch.bfloat16)


def check_names(names: Any) -> tuple[str, ...]:
    """Return ``gossip_state`` as a tuple of names, or raise ConfigurationError."""
    given = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else (names,)
    if not all(isinstance(name, str) and name for name in given) or len(set(given)) != len(given):
        raise ConfigurationError(
            f"gossip_state={names!r}: expected names of entries of the optimizer's state, each once, such as ('z',)"
        )
    return given


class Points:
    """The slots of an optimizer.

    Args:
        optimizer: the wrapped one; ``optimizer.state[p][name]`` is what a slot stands for.
        names: which entries hold points in parameter space.
        moments: which entries are moving averages of gradients, which start from 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, names: tuple[str, ...], moments: tuple[str, ...] = ()) -> None:
        self.optimizer = optimizer
        self.points = names
        self.moments = moments
        self.names = (*names, *moments)
        """All entries that travel."""
        self._slots: dict[str, dict[Tensor, Tensor]] = {name: {} for name in self.names}
        self._begun: dict[str, set[Tensor]] = {name: set() for name in self.names}
        self._called: dict[Tensor, str] = {}

    @torch.inference_mode(False)  # slots are written to outside of inference mode
    def slots(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the slots of these parameters, by a name for messages; new ones hold the parameter, or 0.

        Raises:
            ConfigurationError: a moment of a parameter of half precision.
        """
        found = {}
        for called, parameter in parameters.items() if self.names else ():
            self._called.setdefault(parameter, called)
            for name in self.names:
                slots = self._slots[name]
                if parameter not in slots:
                    slots[parameter] = self._first(parameter, name)
                found[f"{called} (state {name!r})"] = slots[parameter]
        return found

    def _first(self, parameter: Tensor, name: str) -> Tensor:
        if name not in self.moments:
            return parameter.detach().clone()
        if parameter.dtype in HALF:
            raise ConfigurationError(
                f"adaptive='corrected': expected parameters of float32 or wider, got {_form(parameter)} of parameter "
                f"{self._called[parameter]}: its second moment would be too coarse to correct. Keep the parameters in "
                "float32 and compute under torch.autocast, or leave adaptive out"
            )
        return torch.zeros_like(parameter.detach(), memory_format=torch.preserve_format)

    def held(self, name: str) -> Iterator[Tensor]:
        """Give every slot of an entry."""
        yield from self._slots[name].values()

    def slot(self, parameter: Tensor, name: str) -> Tensor | None:
        """Return the slot of one parameter, if there is one."""
        return self._slots[name].get(parameter)

    def among(self, exchanged: Mapping[str, Tensor]) -> list[str]:
        """Return the names of those tensors that are slots."""
        own = {id(slot) for slots in self._slots.values() for slot in slots.values()}
        return [name for name, tensor in exchanged.items() if id(tensor) in own]

    @torch.no_grad()
    def adopt(self) -> None:
        """Take over what the optimizer has made or replaced since the last call. Local.

        Raises:
            ConfigurationError: an entry is no tensor of its parameter's shape, dtype and device.
        """
        for name, slots in self._slots.items():
            for parameter, slot in slots.items():
                entries = entries_of(self.optimizer, parameter)
                entry = entries.get(name)
                if entry is slot:
                    continue
                if entry is None:
                    self._wait(parameter, slot, name)
                    continue
                self._check(entry, parameter, name)
                slot.copy_(entry)
                entries[name] = slot
                self._begun[name].add(parameter)

    def _wait(self, parameter: Tensor, slot: Tensor, name: str) -> None:
        """Set a slot to what its entry will start from."""
        if name not in self.moments:
            slot.copy_(parameter)
        elif parameter in self._begun[name]:  # the state was cleared; otherwise the slot keeps what peers have sent
            slot.zero_()
            self._begun[name].discard(parameter)

    def _check(self, entry: Any, parameter: Tensor, name: str) -> None:
        expected = _form(parameter)
        got = _form(entry) if isinstance(entry, Tensor) else type(entry).__name__
        if got != expected:
            raise ConfigurationError(
                f"gossip_state: expected state {name!r} of parameter {self._called[parameter]} to be a point in "
                f"parameter space ({expected}, as the parameter), got {got}. Leave {name!r} out of gossip_state, or "
                "give the model the dtype and device of that state"
                if name not in self.moments
                else f"adaptive='corrected': expected state {name!r} of parameter {self._called[parameter]} to be "
                f"{expected}, as the parameter, got {got}. Leave adaptive out, or give the state that form"
            )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device}"


def entries_of(optimizer: Any, parameter: Tensor) -> dict[str, Any]:
    """Return the state of one parameter, without making it."""
    entries = optimizer.state.get(parameter)
    return entries if isinstance(entries, dict) else {}


# ---------------------------------------------------------------------- averaging, whatever the optimizer's mode


@contextmanager
def averaged(optimizer: Any, push_sum: PushSum, buffers: Mapping[str, Tensor] | None, points: Points) -> Iterator[None]:
    """Collective. As :func:`collectives.averaged`, for an optimizer that may have ``train()`` and ``eval()``.

    Its mode is put back at the end, whatever was called inside. Messages in flight hold parameters of train mode. So
    with points the average is taken in train mode, and then shown in the mode that the optimizer was in.
    """
    if not (callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))):
        with collectives.averaged(push_sum, buffers):
            yield
        return
    outside = _flags(optimizer)
    kept = [push_sum.memory.raw(chunk) for chunk in push_sum.memory.chunks] if points.names else []
    if points.names:
        optimizer.train()
    inside = _flags(optimizer)
    evaluating = inside != outside
    try:
        with collectives.averaged(push_sum, buffers):
            if evaluating:
                optimizer.eval()
            yield
    finally:
        with held_back():
            _put_flags(inside)
            if evaluating and push_sum.staleness == "unbounded":
                optimizer.eval()  # asynchronous ranks have merged before the average, and that must stay
            elif evaluating:
                _put_flags(outside)
                for chunk, flat in zip(push_sum.memory.chunks, kept, strict=True):
                    push_sum.memory.put_raw(chunk, flat)


Flags = list[tuple[dict[str, Any], str, bool]]


def _flags(optimizer: Any) -> Flags:
    """List every bool that an optimizer, its groups, and optimizers inside it hold: their mode is one of them."""
    found: Flags = []
    seen: set[int] = set()
    waiting = [optimizer]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        own = vars(one)
        waiting += [value for value in own.values() if isinstance(value, torch.optim.Optimizer)]
        for holder in (own, *one.param_groups):
            found += [(holder, key, value) for key, value in holder.items() if isinstance(value, bool)]
    return found


def _put_flags(flags: Flags) -> None:
    for holder, key, value in flags:
        holder[key] = value
