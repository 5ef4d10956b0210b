"""Which tensors of an optimizer and its model travel, what they are called, and whether the model still holds them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .. import _torch_compat, tensor_kinds
from ..channel import Channel
from ..channel.agreement import listed
from .points import Points

__all__ = ["Tensors"]


class Tensors:
    """The tensors of an optimizer and its model.

    Args:
        optimizer: its parameters travel.
        model: gives them their names. None: they are called by group and index.
        with_buffers: the model's floating buffers travel too.
        points: state of the optimizer that travels with its parameters.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module | None,
        *,
        with_buffers: bool,
        points: Points | None = None,
    ) -> None:
        self.optimizer = optimizer
        self._model = model
        self._with_buffers = with_buffers
        self.points = Points(optimizer, ()) if points is None else points
        self.left_out: dict[str, str] = {}
        """Floating buffers that would travel but do not, by name, with the reason; decided at construction, by all
        ranks together in :meth:`leave_out_together`."""
        if with_buffers and model is not None:
            held = dict((*model.named_parameters(), *model.named_buffers()))
            shared = tensor_kinds.shared_memory(held)
            why = {name: _why_left_out(buffer, shared.get(name)) for name, buffer in model.named_buffers()}
            self.left_out = {name: reason for name, reason in why.items() if reason is not None}
        self.look_again()

    def leave_out_together(self, channels: Iterable[Channel]) -> list[str]:
        """Collective. Leave out on every rank what any rank leaves out: its reason may not be there on the others.

        Args:
            channels: what goes over these, one after the other, reaches every rank.

        Returns:
            The names that are left out.
        """
        everyone: dict[int, dict[str, str]] = {}
        for channel in channels:
            everyone.setdefault(channel.job_rank(), self.left_out)
            for known in channel.gather_objects(list(everyone.items()), "comparing which buffers travel"):
                everyone.update(known)
        found: dict[str, dict[str, list[int]]] = {}
        for rank, its in sorted(everyone.items()):
            for name, reason in its.items():
                found.setdefault(name, {}).setdefault(reason, []).append(rank)
        self.left_out = {name: _by_rank(reasons, len(everyone)) for name, reasons in found.items()}
        self.look_again()
        return list(self.left_out)

    def look_again(self) -> None:
        """Take the model as it is now."""
        self._settle(self._find_homes())

    def _settle(self, homes: dict[Tensor, tuple[nn.Module, str, str]]) -> None:
        """Remember where tensors are, and what their modules hold."""
        self._homes = homes
        modules = {id(module): module for module, _, _ in homes.values()}
        # Without buffers that travel, a program may bind buffers anew in every step: that is no news.
        count = 2 if self._with_buffers else 1
        tables = [table for module in modules.values() for table in _torch_compat.plain_tables(module)[:count]]
        self._held = [(table, list(map(id, table.values()))) for table in tables]
        self._elsewhere = [
            (tensor, module, short)
            for tensor, (module, short, _) in homes.items()
            if not _torch_compat.plain_tables(module)
        ]

    def _unmoved(self) -> bool:
        """Tell whether all modules hold what they held; some nanoseconds per tensor, as it is asked in every step."""
        # What is exchanged is kept alive, so no other tensor can get its id.
        return all(list(map(id, table.values())) == ids for table, ids in self._held) and all(
            _torch_compat.own_tensor(module, short) is tensor for tensor, module, short in self._elsewhere
        )

    @property
    def parameters(self) -> list[Tensor]:
        """Every parameter of the optimizer, once, in the order of its groups."""
        seen = {id(p): p for group in self.optimizer.param_groups for p in group["params"]}
        return list(seen.values())

    @property
    def exchanged(self) -> dict[str, Tensor]:
        """Every tensor that gossip mixes, by name: the optimizer's parameters, then buffers and points that travel."""
        optimized = self.named_parameters
        return {**optimized, **self.exchanged_buffers, **self.points.slots(optimized)}

    @property
    def exchanged_buffers(self) -> dict[str, Tensor]:
        """The buffers that gossip mixes, by name."""
        return {name: t for t, (_, _, name) in self._homes.items() if not isinstance(t, nn.Parameter)}

    @property
    def all(self) -> dict[str, Tensor]:
        """Every tensor that the optimizer or the model holds, exchanged or not, once, by name."""
        tensors = {id(p): (name, p) for name, p in self.named_parameters.items()}
        if self._model is not None:
            for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers()):
                tensors.setdefault(id(tensor), (name, tensor))
        return dict(tensors.values())

    @property
    def averaged_buffers(self) -> dict[str, Tensor]:
        """The buffers that do not travel, by name; where ``with_buffers``, those that were left out."""
        if self._model is None:
            return {}
        buffers = dict(self._model.named_buffers())
        return {name: b for name, b in buffers.items() if name in self.left_out} if self._with_buffers else buffers

    @property
    def roles(self) -> dict[str, str]:
        """Tied parameters, and those that the optimizer lacks. Ranks that differ in these exchange other tensors."""
        stepped = {id(p) for p in self.parameters}
        first: dict[int, str] = {}
        tied, lacking = [], []
        for name, p in self._model.named_parameters(remove_duplicate=False) if self._model is not None else ():
            other = first.setdefault(id(p), name)
            if other != name:
                tied.append(f"{name} to {other}")
            elif id(p) not in stepped:
                lacking.append(name)
        return {
            "the list of tied parameters": _shown(tied),
            "the list of parameters that the optimizer lacks": _shown(lacking),
        }

    def lost(self) -> list[str]:
        """Return the names of exchanged tensors that the model no longer holds; nearly free when there are none."""
        if self._unmoved():
            return []
        now = self._find_homes()
        exchanged = {id(tensor) for tensor in self.exchanged.values()}
        lost = [name for t, (_, _, name) in self._homes.items() if id(t) in exchanged and t not in now]
        if not lost:
            self._settle(now)  # they have moved within the model
        return lost

    @property
    def named_parameters(self) -> dict[str, Tensor]:
        """The optimizer's parameters, by name."""
        names = {id(p): name for p, (_, _, name) in self._homes.items()}
        named: dict[str, Tensor] = {}
        for g, group in enumerate(self.optimizer.param_groups):
            given = group.get("param_names", ())
            for index, parameter in enumerate(group["params"]):
                spare = given[index] if index < len(given) else f"group {g} parameter {index}"
                name = names.get(id(parameter), spare)
                while name in named and named[name] is not parameter:
                    name += "'"
                named.setdefault(name, parameter)
        return named

    def _find_homes(self) -> dict[Tensor, tuple[nn.Module, str, str]]:
        """Map what may travel of the model to the module that holds it, its name there and its full name."""
        homes: dict[Tensor, tuple[nn.Module, str, str]] = {}
        for prefix, module in self._model.named_modules() if self._model is not None else ():
            held = [(short, tensor, False) for short, tensor in module.named_parameters(recurse=False)]
            if self._with_buffers:
                held += [
                    (short, b, True) for short, b in module.named_buffers(recurse=False) if tensor_kinds.is_floating(b)
                ]
            for short, tensor, is_buffer in held:
                name = f"{prefix}.{short}" if prefix else short
                if not (is_buffer and name in self.left_out):
                    homes.setdefault(tensor, (module, short, name))
        return homes


def _shown(names: list[str]) -> str:
    if len(names) > 5:
        return f"{', '.join(names[:5])}, ... ({len(names)} in all)"
    return ", ".join(names) or "nothing"


def _by_rank(reasons: dict[str, list[int]], size: int) -> str:
    """Say why a buffer is left out, and on which ranks where it is not on all of them."""
    return ", ".join(why if len(ranks) == size else f"{why} on {listed(ranks)}" for why, ranks in reasons.items())


def _why_left_out(buffer: Tensor, shared: str | None) -> str | None:
    """Return why a buffer that would travel is not mixed; None if it is, or if it never travels.

    Args:
        shared: what it shares its memory with, if it does.
    """
    if not tensor_kinds.is_floating(buffer):
        return None
    if shared is not None:
        return shared
    reason = tensor_kinds.why_not_mixed(buffer)
    if reason is not None:
        return reason[0]
    if buffer.dtype not in tensor_kinds.MIXED:
        return f"is of dtype {str(buffer.dtype).removeprefix('torch.')}"
    if not torch.isfinite(tensor_kinds.local_part(buffer)).all():
        return "holds inf or nan"  # as causal masks and observers do: it has not diverged
    return None
