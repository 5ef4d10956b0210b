"""What the wrapped optimizer steps now, compared with what is exchanged: parameters also come behind the wrapper.

``optimizer.optimizer.add_param_group``, ``param_groups`` bound anew, a list of parameters appended to: frameworks do
all of these, on every rank at the same step. So what is new is taken in at the next step, by all ranks together.

A parameter that has left the groups stays exchanged: nothing trains it, so gossip only brings the ranks together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .. import tensor_kinds
from ..channel import copying
from ..channel.agreement import agree
from ..errors import LayoutError, PushSumError
from ..log import log
from ..push_sum import PushSum
from ..push_sum.lifetime import JOINING
from ..transport import calling
from .tensors import Tensors

__all__ = ["Watch"]

CALL = "step() with new parameters"


class Watch:
    """Keeps what is exchanged equal to what is stepped.

    Args:
        tensors: what the optimizer steps.
        push_sum: what is exchanged.
        taken_in: called after something was.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, tensors: Tensors, push_sum: PushSum, taken_in: Callable[[], None]
    ) -> None:
        self.optimizer = optimizer
        self._tensors = tensors
        self._push_sum = push_sum
        self._taken_in = taken_in
        # They began alike on all ranks, so that what they hold now is worth keeping.
        self._begun = list(tensors.all.values())
        self._seen = self._ids()

    def look(self) -> None:
        """Take in what is new; nearly free where nothing is. Where something is, all ranks do it at the same step.

        Raises:
            LayoutError: the ranks do not agree on what is new; it names what is new here.
        """
        if self._ids() != self._seen:
            self._take_in()

    def add(self, call: str) -> None:
        """Collective. Exchange what is new from the next round on, with rank 0's values on every rank."""
        new = self._new()
        self._extend(new, call)
        self._start_alike(new, call)
        self._taken()

    def _ids(self) -> list[int]:
        # Parameters that are exchanged are held, so that no other tensor gets the id of one.
        ids: list[int] = []
        for group in self.optimizer.param_groups:
            ids += map(id, group["params"])
        return ids

    def _take_in(self) -> None:
        push_sum = self._push_sum
        if push_sum.closed or push_sum.failed or push_sum.on_loan is not None:
            return  # the step that is being made will be refused
        self._tensors.look_again()
        self._replace()
        new = self._new()
        if new:
            with calling(f"{CALL}: {_listed(new)}"):
                self._agree(new)
                self._extend(new, CALL)
                begun = {id(tensor) for tensor in self._begun}
                self._start_alike({name: tensor for name, tensor in new.items() if id(tensor) not in begun}, CALL)
            if push_sum.first:
                log.info("exchanged from round %d on: new parameters %s", push_sum.round, _listed(new))
        self._taken()

    def _extend(self, new: Mapping[str, Tensor], call: str) -> None:
        buffers = {id(tensor) for tensor in self._tensors.exchanged_buffers.values()}
        by_element = [name for name, tensor in new.items() if id(tensor) in buffers]
        self._push_sum.extend(new, call=call, by_element=by_element)

    def _taken(self) -> None:
        self._seen = self._ids()
        self._taken_in()

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
                self._push_sum.replace(name, tensor)

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
        with push_sum.failing_together():
            try:
                if push_sum.out_of_step is not None:
                    raise LayoutError(f"inside {push_sum.out_of_step} ranks are in different steps")
                push_sum.gossip.meet(push_sum.round, f"{CALL}: {_listed(new)}")
                for channel in push_sum.channels:
                    agree(channel, form)
            except PushSumError as error:
                raise LayoutError(
                    f"rank {push_sum.rank}, round {push_sum.round}: parameters have come to the wrapped optimizer that "
                    f"are not exchanged: {_listed(new)}, and not every rank has got the same ones at this step "
                    f"({error}). Add them on every rank after the same number of steps"
                ) from error

    def _start_alike(self, new: Mapping[str, Tensor], call: str) -> None:
        push_sum = self._push_sum
        with push_sum.failing_together(JOINING), calling(call):
            # First inside every host, then between hosts: rank 0's values reach all.
            for channel in (*push_sum.host.replicas, push_sum.channel):
                copying.broadcast_tensors(channel, new, 0)


def _listed(names: Mapping[str, Tensor]) -> str:
    shown = ", ".join(list(names)[:5])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 5 else shown
