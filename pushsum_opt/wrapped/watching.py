"""Finds parameters that the wrapped optimizer steps and that are not exchanged yet; all ranks then exchange them.

Parameters can come without a call to the wrapper: frameworks call ``optimizer.optimizer.add_param_group``, assign
``param_groups``, or append to a list of parameters. They do it on every rank at the same step. So all ranks take in the
new parameters together, at the next step.

A parameter that has left the groups is still exchanged. Nothing trains it, so gossip only brings the ranks together.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import tensor_kinds
from ..channel import copying
from ..channel.agreement import agree
from ..errors import LayoutError, PushSumError, RanksLost
from ..log import log
from ..push_sum import PushSum, changing
from ..push_sum.lifetime import JOINING
from ..transport import calling
from .host_gradients import HostGradients
from .tensors import Tensors

__all__ = ["Watch"]

CALL = "step() with new parameters"


class Watch:
    """Makes all parameters that are stepped parameters that are exchanged.

    Args:
        tensors: what the optimizer steps.
        push_sum: what is exchanged.
        host_gradients: looks at the parameters again after something new was taken in.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        tensors: Tensors,
        push_sum: PushSum,
        host_gradients: HostGradients | None,
    ) -> None:
        self.optimizer = optimizer
        self._tensors = tensors
        self._push_sum = push_sum
        self._host_gradients = host_gradients
        # They were equal on all ranks at the start, so this rank keeps the values that they have now.
        self._begun = list(tensors.all.values())
        self._seen = self._stepped()

    def look(self) -> None:
        """Take in new parameters; nearly free where there are none. All ranks do it at the same step.

        Raises:
            LayoutError: the ranks do not agree on what is new; it names what is new here.
        """
        groups = self.optimizer.param_groups
        if not (len(groups) == len(self._seen) and all(map(_same, groups, self._seen))):
            self._take_in()

    def add(self, call: str) -> None:
        """Collective. Exchange what is new from the next round on, with rank 0's values on every rank."""
        new = self._new()
        self._exchange(new, partial(self._add, new, call))
        self._taken()

    def _add(self, new: Mapping[str, Tensor], call: str) -> None:
        self._extend(new, call)
        self._start_alike(new, call)

    def _exchange(self, new: Mapping[str, Tensor], add: Callable[[], None]) -> None:
        """Collective. Add tensors; where ranks die meanwhile, the others begin again with what they had before."""
        member = self._push_sum.member

        def attempt() -> None:
            try:
                add()
            except RanksLost:
                changing.retract(member, new)
                raise

        member.survival.together(
            attempt, commit=lambda _: member.place.ledger.all_opened(), undo=lambda _: changing.retract(member, new)
        )

    def _stepped(self) -> list[list[Tensor]]:
        """Return the parameters of each group."""
        return [list(group["params"]) for group in self.optimizer.param_groups]

    def _take_in(self) -> None:
        push_sum = self._push_sum
        if push_sum.closed or push_sum.member.failed or push_sum.member.lifetime.on_loan is not None:
            return  # the step that is being made will be refused
        self._tensors.look_again()
        self._replace()
        new = self._new()
        if new:
            self._exchange(new, partial(self._add_where_all_agree, new))
            if push_sum.member.place.speaks:
                log.info("exchanged from round %d on: new parameters %s", push_sum.round, _listed(new))
        self._taken()

    def _add_where_all_agree(self, new: Mapping[str, Tensor]) -> None:
        begun = {id(tensor) for tensor in self._begun}
        with calling(f"{CALL}: {_listed(new)}"):
            self._agree(new)
            self._extend(new, CALL)
            self._start_alike({name: tensor for name, tensor in new.items() if id(tensor) not in begun}, CALL)

    def _extend(self, new: Mapping[str, Tensor], call: str) -> None:
        buffers = {id(tensor) for tensor in self._tensors.exchanged_buffers.values()}
        by_element = [name for name, tensor in new.items() if id(tensor) in buffers]
        changing.extend(self._push_sum.member, new, call, by_element)

    def _taken(self) -> None:
        self._seen = self._stepped()
        if self._host_gradients is not None:
            self._host_gradients.look_again()

    def _replace(self) -> None:
        """Put new tensors in the place of old ones of the same name and kind that are no longer stepped. Local."""
        held = self._push_sum.memory.tensors
        known = {id(tensor) for tensor in held.values()}
        exchanged = self._tensors.exchanged
        stepped = {id(tensor) for tensor in exchanged.values()}
        for name, tensor in exchanged.items():
            old = held.get(name)
            if old is None or id(tensor) in known or id(old) in stepped:
                continue
            if tensor_kinds.described(old) == tensor_kinds.described(tensor):
                changing.replace(self._push_sum.member, name, tensor)

    def _new(self) -> dict[str, Tensor]:
        """Return what is stepped and not exchanged, by names that nothing that is exchanged has."""
        self._tensors.look_again()
        held = self._push_sum.memory.tensors
        known = {id(tensor) for tensor in held.values()}
        new: dict[str, Tensor] = {}
        for name, tensor in self._tensors.exchanged.items():
            if id(tensor) not in known:
                while name in held or name in new:
                    name += "'"
                new[name] = tensor
        return new

    def _agree(self, new: Mapping[str, Tensor]) -> None:
        push_sum = self._push_sum
        form = {name: tensor_kinds.described(tensor) for name, tensor in new.items()}
        with push_sum.member.lifetime.failing_together():
            try:
                if push_sum.member.lifetime.out_of_step is not None:
                    raise LayoutError(f"inside {push_sum.member.lifetime.out_of_step} ranks are in different steps")
                push_sum.member.mode.meet(push_sum.round, f"{CALL}: {_listed(new)}")
                for channel in push_sum.member.place.channels:
                    agree(channel, form)
            except RanksLost:
                raise
            except PushSumError as error:
                raise LayoutError(
                    f"rank {push_sum.rank}, round {push_sum.round}: parameters have come to the wrapped optimizer that "
                    f"are not exchanged: {_listed(new)}, and not every rank has got the same ones at this step "
                    f"({error}). Add them on every rank after the same number of steps"
                ) from error

    def _start_alike(self, new: Mapping[str, Tensor], call: str) -> None:
        push_sum = self._push_sum
        with push_sum.member.lifetime.failing_together(JOINING), calling(call):
            # First inside every host, then between hosts: rank 0's values reach all.
            for channel in (*push_sum.member.place.host.replicas, push_sum.member.place.channel):
                copying.broadcast_tensors(channel, new, 0)


def _same(group: Mapping[str, Any], seen: list[Tensor]) -> bool:
    """Tell whether a group holds these very parameters; some nanoseconds for each."""
    parameters = group["params"]
    return len(parameters) == len(seen) and all(map(operator.is_, parameters, seen))


def _listed(names: Mapping[str, Tensor]) -> str:
    shown = ", ".join(list(names)[:5])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 5 else shown
