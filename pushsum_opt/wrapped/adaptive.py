"""Adam that converges under gossip as under all-reduce: its first moment travels, and its second one is corrected.

The wrapped optimizer makes its own step. Its state is prepared before that (see ``second_moment.py``), and its first
moment is one of the entries that travel with the parameters (see ``points.py``).
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _torch_compat
from ..errors import ConfigurationError
from ..push_sum import PushSum
from .ageing import Ageing
from .calls import call_step
from .points import Points, entries_of
from .second_moment import Moments, Rule, correct

__all__ = ["FIRST", "Corrected", "check", "hint", "moments_of"]

FIRST, SECOND = "exp_avg", "exp_avg_sq"

KINDS = tuple(getattr(torch.optim, name) for name in ("Adam", "AdamW", "NAdam", "RAdam"))

LINEAR = "its step is linear in the gradient, so gossip averages what all-reduce averages"
NO_FIRST = "it has a second moment and no first one that could travel, and the correction needs both"
WHY_NOT = {
    "SGD": LINEAR,
    "ASGD": LINEAR,
    "Adagrad": NO_FIRST,
    "RMSprop": NO_FIRST,
    "Adadelta": NO_FIRST,
    "Adafactor": "it keeps the second moment of rows and columns, which cannot be corrected element by element",
    "Adamax": "it keeps the largest gradient and not the mean square",
    "SparseAdam": "its moments change only where a gradient is, so those of two ranks are of different steps",
    "Lion": "it has no second moment: each rank takes the sign of its own moving average",
    "Muon": "it has no second moment: each rank orthogonalizes its own moving average",
    "Rprop": "it takes the sign of each rank's own gradient",
}


def check(adaptive: Any, optimizer: torch.optim.Optimizer, gossip_state: tuple[str, ...]) -> bool:
    """Tell whether the correction is wanted.

    Raises:
        ConfigurationError: it is, and this optimizer cannot be corrected.
    """
    if adaptive not in (None, "plain", "corrected"):
        raise ConfigurationError(f"adaptive={adaptive!r}: expected 'plain', 'corrected' or None, which is 'plain'")
    if adaptive != "corrected":
        return False
    if FIRST in gossip_state:
        raise ConfigurationError(
            f"gossip_state={gossip_state!r} with adaptive='corrected': {FIRST!r} travels already, as a moment and not "
            "as a point in parameter space. Leave it out of gossip_state"
        )
    if not _is_adam(optimizer):
        name = type(optimizer).__name__
        why = WHY_NOT.get(name, "the rule is known for these alone")
        raise ConfigurationError(
            f"adaptive='corrected' with {name}: expected torch's Adam, AdamW, NAdam or RAdam, or a class that takes "
            f"its step() from one of them: {why}. Leave adaptive out"
        )
    for number, group in enumerate(optimizer.param_groups):
        _check_betas(group, number)
        if group.get("differentiable"):
            raise ConfigurationError(
                f"adaptive='corrected' with differentiable=True in group {number}: its state is changed between steps, "
                "which autograd does not see. Leave one of them out"
            )
    return True


def hint(adaptive: Any, optimizer: torch.optim.Optimizer, gossip_state: tuple[str, ...]) -> str | None:
    """Return what to tell a user who has not chosen; None where there is no choice, or it was made."""
    if adaptive is not None:
        return None
    try:
        check("corrected", optimizer, gossip_state)
    except ConfigurationError:
        return None
    return (
        f"{type(optimizer).__name__} under gossip ends with a higher loss than under all-reduce at the same rate. "
        "adaptive='corrected' closes most of this gap, for twice the bytes; adaptive='plain' hides this line. "
        "Figures: docs/adaptive.md"
    )


def _is_adam(optimizer: torch.optim.Optimizer) -> bool:
    step = inspect.unwrap(type(optimizer).step)
    return isinstance(optimizer, KINDS) and any(step is inspect.unwrap(kind.step) for kind in KINDS)


def _check_betas(group: dict[str, Any], number: int) -> tuple[float, float]:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    if not (0.0 < beta1 < 1.0 and 0.0 < beta2 < 1.0):
        raise ConfigurationError(
            f"adaptive='corrected' with betas ({beta1}, {beta2}) in group {number}: expected both above 0 and below 1. "
            "Without a moving average there is none that could travel or be corrected: leave adaptive out"
        )
    return beta1, beta2


def moments_of(wanted: bool) -> tuple[str, ...]:
    """Return the names of the entries of the optimizer's state that travel for the correction."""
    return (FIRST,) if wanted else ()


class Corrected:
    """Makes the steps of an optimizer of the Adam family.

    Args:
        optimizer: the wrapped one.
        points: exchanges :data:`FIRST`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, points: Points) -> None:
        self._optimizer = optimizer
        self._points = points
        self._theta = 1.0
        self._member: Callable[[], Any] = lambda: None
        self._begins: list[tuple[Tensor, float]] = []  # parameters whose state this step makes, with beta1
        self.ageing = Ageing(optimizer, points, FIRST)

    def bind(self, push_sum: PushSum) -> None:
        """Collective. Learn the data weights of all ranks."""
        self.ageing.bind(push_sum)
        points = weakref.ref(self._points)

        def moments() -> frozenset[int]:
            held = points()
            return frozenset(() if held is None else map(id, held.held(FIRST)))

        push_sum.member.moments = moments
        squares = np.array([(push_sum.initial_weight / push_sum.participants) ** 2])
        push_sum.member.place.channel.sum(squares, "adaptive='corrected'", round=push_sum.round)
        self._theta = float(squares[0])
        self._member = weakref.ref(push_sum.member)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the steps of another optimizer from now on, over the same parameters."""
        self._optimizer = self.ageing.optimizer = optimizer

    @property
    def active(self) -> bool:
        """Whether there is anything to correct: with one rank there is not."""
        return self._theta_now < 1.0

    @property
    def _theta_now(self) -> float:
        """theta of the ranks that take part now: after a loss, or after spares were taken in, that is another one."""
        member = self._member()
        initial = () if member is None else member.place.initial_of_all
        return sum((a / len(initial)) ** 2 for a in initial) if initial else self._theta

    def nbytes(self) -> int:
        """Bytes of the first moments."""
        return sum(slot.numel() * slot.element_size() for slot in self._points.held(FIRST))

    def step(self, closure: Callable[[], Any] | None, args: Any, kwargs: dict[str, Any], fresh: float) -> Any:
        """Prepare the optimizer's state, and make its step. Gradients are unscaled.

        Args:
            fresh: a_i / w, by which the step in z is scaled.

        Returns:
            What the optimizer returned.
        """
        if not self.active:
            return call_step(self._optimizer, closure, args, kwargs)
        handle = None
        if callable(closure):
            closure = self._after(closure, fresh)
        elif _torch_compat.has_step_hooks(self._optimizer):
            # Hooks may change gradients, so this one comes last.
            handle = self._optimizer.register_step_pre_hook(lambda *given: self._prepare(fresh))
        else:
            self._prepare(fresh)
        try:
            loss = call_step(self._optimizer, closure, args, kwargs)
        finally:
            if handle is not None:
                handle.remove()
        self._take_begun(fresh)
        self.ageing.step_taken()
        return loss

    def _after(self, closure: Callable[[], Any], fresh: float) -> Callable[[], Any]:
        def preparing_closure() -> Any:
            loss = closure()  # torch's Adam calls it once, before anything else
            self._prepare(fresh)
            return loss

        return preparing_closure

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _prepare(self, fresh: float) -> None:
        self._begins = []
        for number, group in enumerate(self._optimizer.param_groups):
            beta1, beta2 = _check_betas(group, number)
            decay = 0.0 if self._decouples(group) else float(group["weight_decay"])
            rule = Rule(beta1, beta2, decay, bool(group["maximize"]), self._theta_now, fresh)
            correct(rule, self._moments(group, beta1))

    def _decouples(self, group: dict[str, Any]) -> bool:
        """Tell whether weight decay acts on the parameters alone. AdamW says so in its groups since torch 2.7 only."""
        return bool(group.get("decoupled_weight_decay", isinstance(self._optimizer, torch.optim.AdamW)))

    def _moments(self, group: dict[str, Any], beta1: float) -> list[Moments]:
        found = []
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None or gradient.is_sparse:  # torch refuses sparse ones
                continue
            entries = entries_of(self._optimizer, parameter)
            if FIRST in entries:
                found.append(Moments(parameter, gradient, entries[FIRST], entries[SECOND], entries["step"]))
            else:  # at t = 1 m_hat is g, so there is nothing to correct
                self._begins.append((parameter, beta1))
        return found

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _take_begun(self, fresh: float) -> None:
        """Add what peers have sent to moments that torch has just made from 0."""
        begins, self._begins = self._begins, []
        for parameter, beta1 in begins:
            slot = self._points.slot(parameter, FIRST)
            entry = entries_of(self._optimizer, parameter).get(FIRST)
            if slot is not None and isinstance(entry, Tensor):
                entry.mul_(fresh).add_(slot, alpha=beta1)

    @contextmanager
    def keeping_moments(self, step: AbstractContextManager[None]) -> Iterator[None]:
        """Make a step in a context that scales the change of all that travels; that of moments stays unscaled."""
        with step:
            yield
            kept = [slot.clone() for slot in self._points.held(FIRST)]
        for slot, value in zip(self._points.held(FIRST), kept, strict=True):
            slot.copy_(value)
