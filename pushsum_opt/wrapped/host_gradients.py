"""Averages gradients over the ranks of a host at the end of backward().

What a script does between backward() and step() (clipping, unscaling, noise, logging the norm) then acts on the
average, as it does under DistributedDataParallel.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import _torch_compat
from ..errors import ConfigurationError
from ..hosts import Hosts
from ..hosts.gradients import GradientAverage, is_plain, reduces
from ..hosts.meeting import BACKWARD, CLOSE, Standing, meet, refuse_apart
from ..push_sum import PushSum
from ..transport import LoopbackComm
from .tensors import Tensors

__all__ = ["HostGradients"]

_numbers = itertools.count()
_open: weakref.WeakSet[HostGradients] = weakref.WeakSet()


class HostGradients:
    """The gradients of one optimizer, averaged over the ranks of a host.

    Averaging is linear. Where backward() adds to gradients that are averages already, averaging the sum averages what
    was added. So every backward() may average, and gradients accumulate correctly.

    Args:
        push_sum: has the host, and tells the other ranks of errors.
        tensors: has the parameters.
    """

    def __init__(self, push_sum: PushSum, tensors: Tensors) -> None:
        assert isinstance(push_sum.member.place.host, Hosts)
        self._push_sum = push_sum
        self._tensors = tensors
        self._average = GradientAverage(push_sum.member.place.host)
        self._number = next(_numbers)
        self._hooked: dict[int, Any] = {}
        self._touched: set[int] = set()  # ids of parameters to whose gradients backward() has added since the average
        self._averaged: set[int] = set()  # ids of parameters whose gradients have been averaged in this step
        self._averagings = 0
        self._joined = False
        self._in_backward = True
        self._asked: dict[int, int] = {}  # by parameter's device: the backward() whose end has been asked for
        self.look_again()
        _open.add(self)
        push_sum.member.before_close.append(self.close)

    @property
    def _hosts(self) -> Hosts:
        """This rank's host: another object once other hosts were lost."""
        host = self._push_sum.member.place.host
        assert isinstance(host, Hosts)
        self._average.hosts = host
        return host

    # ------------------------------------------------------------------ in backward()

    def look_again(self) -> None:
        """Attach to the parameters that are new."""
        if self._hosts.lanes == 1:
            return
        mine = weakref.ref(self)
        for parameter in self._tensors.parameters:
            if id(parameter) in self._hooked or not self._can_average_in_backward(parameter):
                continue
            with_grad = parameter.requires_grad
            # A frozen parameter may be trained later, and torch attaches no hook to it while it is frozen.
            parameter.requires_grad_(True)
            self._hooked[id(parameter)] = _torch_compat.after_accumulation(parameter, _telling(mine))
            parameter.requires_grad_(with_grad)

    def _can_average_in_backward(self, parameter: Tensor) -> bool:
        """Gradients on a device come from a thread of torch: MPI must allow calls from it, and no other rank use it."""
        mine = self._hosts.channel.transport.threaded and not isinstance(self._hosts.comm, LoopbackComm)
        return parameter.is_leaf and (parameter.device.type == "cpu" or mine)

    def touch(self, parameter: Tensor) -> None:
        """Note that backward() has added to a gradient; average at its end."""
        if self._push_sum.closed or (parameter.is_cuda and torch.cuda.is_current_stream_capturing()):
            return  # with a captured graph step() averages, because a graph cannot wait for another rank
        self._touched.add(id(parameter))
        if not self._in_backward:
            return
        backward, device = _torch_compat.backward_id(), hash(parameter.device)
        if self._asked.get(device) != backward:
            self._asked[device] = backward
            _torch_compat.at_end_of_backward(self._backward_ends)

    def _backward_ends(self) -> None:
        """Average for every optimizer of this rank, in the order in which they were made, equal on all ranks."""
        comm = self._hosts.comm
        for one in sorted((o for o in _open if o._hosts.comm is comm), key=lambda o: o._number):
            if one._touched and one._in_backward and not one._push_sum.closed:
                one._meet_and_average(BACKWARD)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, backward() averages nothing."""
        before, self._in_backward = self._in_backward, False
        try:
            yield
        finally:
            self._in_backward = before

    # ------------------------------------------------------------------ in step() and beside it

    def average_now(self, call: str, *, skips: bool = False, scale: float = math.nan) -> bool:
        """Collective over a host. Average what has not been averaged in this step.

        Args:
            call: the user's call, one of ``hosts.meeting.CALLS``.
            skips: this rank found an inf or nan and will not step.
            scale: the factor of this rank's GradScaler, by which what backward() averaged is multiplied; nan: none.

        Returns:
            Whether any rank of the host will not step; nothing is averaged here then.
        """
        return any(one.skips for one in self._meet_and_average(call, skips=skips, scale=scale))

    def closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure whose gradients and whose loss are averages over the host.

        A line search branches on the loss: ranks of a host must see the same.
        """

        def averaging_closure() -> Any:
            self.forget()
            result = closure()
            loss = _number(result)
            standings = self._meet_and_average("step(closure)", loss=loss)
            losses = [one.loss for one in standings]
            if loss is None or None in losses:
                return result
            mean = sum(share * (its or 0.0) for share, its in zip(self._hosts.data_fractions, losses, strict=True))
            return torch.full_like(result, mean) if isinstance(result, Tensor) else mean

        return averaging_closure

    def forget(self) -> None:
        """Forget which gradients were averaged: they are new now, or will be."""
        self._touched.clear()
        self._averaged.clear()
        self._averagings = 0
        self._joined = False

    def close(self) -> None:
        """Collective over a host. Make sure that every rank of it closes, and detach from the parameters."""
        self._meet_and_average(CLOSE)
        _open.discard(self)
        for handle in self._hooked.values():
            handle.remove()
        self._hooked.clear()

    # ------------------------------------------------------------------ together

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _meet_and_average(
        self, call: str, *, skips: bool = False, scale: float = math.nan, loss: float | None = None
    ) -> list[Standing]:
        """Meet the other ranks of the host until all are in this call; average in each meeting what needs it."""
        if self._hosts.lanes == 1:
            return [Standing(call, skips=skips, loss=loss)]
        with self._push_sum.member.lifetime.failing_together():
            while True:
                parameters = self._tensors.parameters
                needed = self._needed(parameters, call)

                def average(parameters: Any = parameters, needed: bytearray = needed) -> list[Standing]:
                    return self._meet_once(
                        self._standing(call, parameters, needed, skips, scale, loss), parameters, needed
                    )

                def leave_out(parameters: Any = parameters, needed: bytearray = needed) -> list[Standing]:
                    self._note([p for p, count in zip(parameters, needed, strict=True) if count])
                    return [Standing(call, skips=skips, loss=loss)] * self._hosts.lanes

                standings = self._push_sum.member.host_calls.run(average, leave_out)
                if call == BACKWARD or all(one.call == call for one in standings):
                    return standings  # otherwise it joined in a backward() of others, and meets them again

    def _standing(
        self, call: str, parameters: Sequence[Tensor], needed: bytearray, skips: bool, scale: float, loss: float | None
    ) -> Standing:
        return Standing(
            call,
            averagings=0 if self._joined else self._averagings or int(bool(self._touched) and call != BACKWARD),
            parameters=len(parameters),
            needed=sum(needed),
            digest=hashlib.blake2b(needed, digest_size=16).digest(),
            skips=skips,
            joined=self._joined,
            sparse=not all(is_plain(p.grad) for p in parameters),
            reduces=reduces(self._hosts, parameters),
            scale=scale,
            loss=loss,
        )

    def _meet_once(self, mine: Standing, parameters: Sequence[Tensor], needed: bytearray) -> list[Standing]:
        standings = meet(self._hosts, mine, self._push_sum.round)
        refuse_apart(self._hosts, standings, self._push_sum.round)
        self._refuse_sparse(standings)
        self._average_needed(parameters, needed, standings)
        return standings

    def _note(self, members: Sequence[Tensor]) -> None:
        """Take note that gradients are averaged."""
        self._averaged |= {id(parameter) for parameter in members}
        self._touched -= {id(parameter) for parameter in members}

    def _needed(self, parameters: Sequence[Tensor], call: str) -> bytearray:
        """Mark the parameters whose gradients are to be averaged now."""
        if call == BACKWARD:
            return bytearray(p.grad is not None and id(p) in self._touched for p in parameters)
        new = self._touched | {id(p) for p in parameters if id(p) not in self._averaged}
        return bytearray(p.grad is not None and id(p) in new for p in parameters)

    def _average_needed(self, parameters: Sequence[Tensor], needed: bytearray, standings: list[Standing]) -> None:
        if any(one.skips or one.call == CLOSE for one in standings):
            return
        mixed = any(one.call == BACKWARD for one in standings)
        in_backward = standings[self._hosts.lane].call == BACKWARD
        share = self._hosts.data_fraction
        if not mixed:
            self._refuse_scales(standings)
            if any(one.joined for one in standings) and not all(one.joined for one in standings):
                share = self._share_of_the_ready(standings)
                needed = bytearray(p.grad is not None for p in parameters)
        elif not in_backward:
            self._joined = True
        alike = len({one.digest for one in standings}) == 1 and share == self._hosts.data_fraction
        counts: Any = needed if alike else self._counted(needed)
        members = [parameter for parameter, count in zip(parameters, counts, strict=True) if count]
        on_device = all(one.reduces for one in standings)
        self._average(members, self._push_sum.round, share, on_device)
        self._note(members)
        if mixed or in_backward:
            self._averagings += 1
        else:
            self._joined = False

    def _counted(self, needed: bytearray) -> Any:
        import numpy as np

        counts = np.array(needed, dtype=np.float64)
        self._hosts.sum(counts, self._push_sum.round, "comparing which parameters have gradients")
        return counts

    def _share_of_the_ready(self, standings: list[Standing]) -> float:
        """Return this rank's part of the average; 0 where it only joined in.

        Such a rank has not done what the script of the others did to gradients since.
        """
        pairs = zip(self._hosts.data_fractions, standings, strict=True)
        ready = sum(share for share, one in pairs if not one.joined)
        return 0.0 if self._joined else self._hosts.data_fraction / ready

    def _refuse_sparse(self, standings: list[Standing]) -> None:
        ranks = [rank for rank, one in zip(self._hosts.members, standings, strict=True) if one.sparse]
        if ranks:
            raise ConfigurationError(
                f"rank {self._hosts.rank}, round {self._push_sum.round}: a gradient on rank {ranks[0]} is sparse and "
                "cannot be averaged inside the host: use Embedding(sparse=False), or within_host='ddp'"
            )

    def _refuse_scales(self, standings: list[Standing]) -> None:
        scales = [(rank, one.scale) for rank, one in zip(self._hosts.members, standings, strict=True)]
        known = {scale for _, scale in scales if not math.isnan(scale)}
        if len(known) > 1 and self._averaged:  # the same on every rank of the host
            raise ConfigurationError(
                f"rank {self._hosts.rank}, round {self._push_sum.round}: the GradScalers of this host have different "
                f"scales: {', '.join(f'{scale:g} on rank {rank}' for rank, scale in scales[:8])}. backward() averages "
                "scaled gradients, so the scales must be equal: give every rank the same init_scale, or load the same "
                "scaler.state_dict()"
            )


def _telling(mine: weakref.ref[HostGradients]) -> Callable[[Tensor], None]:
    """Return a hook that tells an object of a gradient, and does not keep it alive."""

    def accumulated(parameter: Tensor) -> None:
        gradients = mine()
        if gradients is not None:
            gradients.touch(parameter)

    return accumulated


def _number(result: Any) -> float | None:
    if isinstance(result, Tensor):
        return float(result.item()) if result.numel() == 1 and result.is_floating_point() else None
    return float(result) if isinstance(result, int | float) and not isinstance(result, bool) else None
