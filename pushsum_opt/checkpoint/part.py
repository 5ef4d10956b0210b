"""One rank's part of a checkpoint: gathered from the objects of a run, and put back into them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tensor_kinds
from ..channel import copying
from ..errors import CallOrderError, CheckpointError
from ..push_sum import PushSum, saving
from . import randomness
from .code import with_code, without_code
from .devices import keep_dtypes, where_it_was
from .directory import FORMAT

__all__ = ["Companions", "capture", "check_fits", "restore", "seat"]

KEY = "push_sum"


class Companions:
    """What is saved beside the optimizer: anything with state_dict() and load_state_dict(), by name."""

    def __init__(self, scaler: Any, scheduler: Any, also: Mapping[str, Any] | None) -> None:
        several = scheduler if isinstance(scheduler, Sequence) else () if scheduler is None else (scheduler,)
        self._held = {
            **({"scaler": scaler} if scaler is not None else {}),
            **{f"scheduler {index}": one for index, one in enumerate(several)},
            **{f"also[{name!r}]": one for name, one in (also or {}).items()},
        }

    def state(self) -> dict[str, Any]:
        return {name: one.state_dict() for name, one in self._held.items()}

    def check_fits(self, saved: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless exactly these were saved."""
        if set(saved) != set(self._held):
            raise CheckpointError(
                f"expected what was saved beside the optimizer ({_listed(saved)}), got {_listed(self._held)}. Pass the "
                "same scaler=, scheduler= and also= to load as to save"
            )

    def restore(self, saved: Mapping[str, Any]) -> None:
        for name, one in self._held.items():
            one.load_state_dict(where_it_was(saved[name], one.state_dict()))


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"


# ---------------------------------------------------------------------- the optimizer and its model


def capture(optimizer: Any, companions: Companions, extra: Any) -> dict[str, Any]:
    """Return everything that this rank needs to go on. Local; tensors are shared, not copied.

    ``model`` is its state_dict. ``names`` says which of its entries are exchanged, and under what name; ``parameters``
    has what is exchanged and not in the model; ``points`` names what of that is optimizer state.
    """
    push_sum = optimizer.push_sum
    block = push_sum.member.lifetime.on_loan
    if block is not None:
        raise CallOrderError(
            f"rank {push_sum.rank}, round {push_sum.round}: a checkpoint inside {block}: the model holds "
            "the average over ranks there, not this rank's own state. Save outside of the block"
        )
    exchanged = push_sum.memory.tensors
    for name, tensor in exchanged.items():
        if hasattr(tensor, "to_local"):
            raise CheckpointError(
                f"{name} is a DTensor, of which every rank holds a shard: expected whole tensors. Save sharded models "
                "with torch.distributed.checkpoint"
            )
    names = _names(optimizer.model, exchanged)
    return {
        "format": FORMAT,
        "rank": push_sum.rank,
        "size": push_sum.size,
        "round": push_sum.round,
        "place": seat(push_sum),
        "share": push_sum.member.place.host.data_fraction,
        "buffers": optimizer.buffers,
        "layout": push_sum.memory.layout_digest.hex(),
        "model": {} if optimizer.model is None else optimizer.model.state_dict(),
        "names": names,
        "points": optimizer.points,
        "parameters": {name: tensor.detach() for name, tensor in exchanged.items() if name not in names.values()},
        "optimizer": without_code(optimizer.state_dict()),
        "groups": _groups(optimizer),
        "companions": companions.state(),
        "random": randomness.state(),
        "extra": extra,
    }


def seat(push_sum: PushSum) -> list[int]:
    """Return (participant in the gossip, lane, lanes) of this rank: (rank, 0, 1), unless a host is one participant."""
    return [push_sum.participant, push_sum.member.place.host.lane, push_sum.member.place.host.lanes]


def _names(model: torch.nn.Module | None, exchanged: Mapping[str, Tensor]) -> dict[str, str]:
    """Map the keys of a model's state_dict to the names of the tensors that are exchanged; tied ones have two keys."""
    by_identity = {id(tensor): name for name, tensor in exchanged.items()}
    held = {} if model is None else model.state_dict(keep_vars=True)
    return {key: by_identity[id(value)] for key, value in held.items() if id(value) in by_identity}


def check_fits(part: Mapping[str, Any], optimizer: Any, companions: Companions, *, exact: bool) -> None:
    """Raise CheckpointError unless a part belongs to such a model and optimizer. Nothing is changed."""
    layout = optimizer.push_sum.memory.layout_digest.hex()
    if exact and part["place"][2] > 1 and part["layout"] != layout:
        raise CheckpointError(
            f"expected layout {part['layout']} of the model over the lanes of a host, as saved, got {layout}: is "
            "PUSHSUM_CHUNK_BYTES or wire_dtype another one? Use the same"
        )
    fresh = {} if optimizer.model is None else optimizer.model.state_dict()
    exchanged = optimizer.push_sum.memory.tensors
    names = _names(optimizer.model, exchanged)
    _compare("the model", part["model"], fresh)
    own = {name: exchanged[name] for name in set(exchanged) - set(names.values())}
    _compare("what the optimizer has beside the model", part["parameters"], own)
    if part["names"] != names:
        changed = sorted(set(part["names"].items()) ^ set(names.items()))[:3]
        raise CheckpointError(f"expected the same tensors to be exchanged as when it was saved, but {changed} differ")
    # Older files have it in the optimizer's state only, and some wrappers of optimizers save that in their own form.
    groups = part.get("groups") or [len(group["params"]) for group in part["optimizer"]["param_groups"]]
    found = _groups(optimizer)
    if groups != found:
        raise CheckpointError(
            f"expected an optimizer with parameter groups of {groups} parameters, as saved, got {found}. Make the same "
            "groups, in the same order, before loading"
        )
    companions.check_fits(part["companions"])


def _groups(optimizer: Any) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def _compare(what: str, saved: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    differences = []
    for name in sorted({*saved, *fresh}):
        expected, got = (_form(held[name]) if name in held else "nothing" for held in (saved, fresh))
        if expected != got:
            differences.append(f"{name}: expected {expected}, got {got}")
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise CheckpointError(
            f"{what} is not the one that was saved: {'; '.join(differences[:3])}{more}. Build the same model; to carry "
            "weights over into another one, use pushsum_opt.checkpoint.consolidate()"
        )


def _form(value: Any) -> str:
    return tensor_kinds.described(value) if isinstance(value, Tensor) else "a value"


def _load_model(model: torch.nn.Module, saved: Mapping[str, Any]) -> None:
    """Load a state_dict that fits; also into tensors to which torch's ``load_state_dict`` cannot write."""
    held = model.state_dict(keep_vars=True)
    special = [key for key, value in held.items() if isinstance(value, Tensor) and _takes_no_copy(value)]
    rest = copy.copy(saved)  # an OrderedDict with the versions of its modules stays one
    for key in special:
        del rest[key]  # type: ignore[attr-defined]
    model.load_state_dict(rest, strict=not special)
    for key in special:
        copying.write(held[key], held[key], saved[key])


def _takes_no_copy(tensor: Tensor) -> bool:
    if tensor.is_nested or tensor.is_inference():
        return True
    return tensor.layout == torch.strided and bool(copying.expanded(tensor))


def restore(part: Mapping[str, Any], optimizer: Any, companions: Companions, *, random: bool) -> None:
    """Put a part back, in place. All ranks do it, and nothing is in flight.

    Args:
        random: continue the random generators too.
    """
    if optimizer.model is not None:
        _load_model(optimizer.model, part["model"])
    present = optimizer.optimizer.state_dict()
    with saving.restoring_exactly(optimizer.push_sum.member):
        optimizer.load_state_dict(with_code(where_it_was(part["optimizer"], present), present))
    keep_dtypes(optimizer.optimizer, part["optimizer"])
    # After the optimizer's state: that holds points in parameter space too, and theirs may be an average.
    exchanged = optimizer.push_sum.memory.tensors
    with torch.no_grad():
        for name, tensor in part["parameters"].items():
            exchanged[name].copy_(tensor)
    companions.restore(part["companions"])
    if random:
        randomness.restore(part["random"])
