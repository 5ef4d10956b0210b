"""The local step: the wrapped optimizer moves z by dz, scaled so that x = w z moves by a_i dz, as in the paper."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..errors import LayoutError
from ..log import log
from ..push_sum import PushSum
from .calls import call_step
from .finding import Finder
from .host_gradients import HostGradients
from .parts import Parts
from .precision import amp_scaling
from .rates import scale_with_rates, scaled_rates
from .watching import Watch

__all__ = ["LocalStep"]


class LocalStep:
    """Makes local steps.

    Args:
        parts: what is wrapped.
        watch: takes in parameters that are new.
        host_gradients: averages gradients inside the host; None: they are not averaged.
    """

    def __init__(self, parts: Parts, push_sum: PushSum, watch: Watch, host_gradients: HostGradients | None) -> None:
        self._parts = parts
        self._push_sum = push_sum
        self._watch = watch
        self._host_gradients = host_gradients
        self._finder: Finder | None = None
        if push_sum.member.place.speaks and push_sum.participants > 1:
            self._finder = Finder(parts.tensors.named_parameters, parts.points.names)

    def make(
        self,
        wrapper: torch.optim.Optimizer,
        scale: float,
        closure: Callable[[], Any] | None,
        args: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        """Make one; return what the wrapped optimizer returned.

        Args:
            wrapper: the optimizer on which a GradScaler has set its values.
            scale: a further factor of the step.
            closure, args, kwargs: for the wrapped optimizer.
        """
        parts, inside = self._parts, self._host_gradients
        self.look_at_parameters()
        self._refuse_lost_parameters()
        average_now = inside.average_now if inside is not None and not callable(closure) else None
        self.adopt_points()
        with self._scaled(scale), self._push_sum.member.calls.stepping():
            corrects = parts.corrected is not None and parts.corrected.active
            with amp_scaling(wrapper, parts.optimizer, average_now, by_hand=corrects) as skip:
                if callable(closure) and inside is not None:
                    closure = inside.closure(closure)
                loss = None if skip else self._update(scale, closure, args, kwargs)
            self.adopt_points()
        if self._finder is not None:
            self._look_for_points()
        return loss

    def _update(self, scale: float, closure: Callable[[], Any] | None, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._parts.corrected is None:
            return call_step(self._parts.optimizer, closure, args, kwargs)
        return self._parts.corrected.step(closure, args, kwargs, self._push_sum.step_factor(scale))

    def _scaled(self, scale: float) -> AbstractContextManager[None]:
        """Return a context in which a step moves x by a_i dz."""
        parts = self._parts
        factor = self._push_sum.step_factor(scale)
        if factor == 1.0:
            return nullcontext()
        if not parts.points.points and scale_with_rates(parts.optimizer):  # a rate may move points in another way
            return scaled_rates(parts.optimizer, factor)
        scaled = self._push_sum.local_step(scale)
        return scaled if parts.corrected is None else parts.corrected.keeping_moments(scaled)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def look_at_parameters(self) -> None:
        """Take in parameters that are new."""
        self._watch.look()

    def adopt_points(self) -> None:
        """Take in optimizer state that travels, where the optimizer has made it anew."""
        if self._parts.points.names:
            self._adopt_points()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _adopt_points(self) -> None:
        with self._push_sum.member.lifetime.failing_together():
            self._parts.points.adopt()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _look_for_points(self) -> None:
        if self._finder is not None and self._finder.step_taken(self._parts.optimizer):
            if self._finder.found:
                log.warning("%s", self._finder.advice())
            self._finder = None

    def _refuse_lost_parameters(self) -> None:
        lost = self._parts.tensors.lost()
        if lost:
            with self._push_sum.member.lifetime.failing_together():
                raise LayoutError(
                    f"rank {self._push_sum.rank}, round {self._push_sum.round}: the model no longer holds the "
                    f"parameters that are optimized: {', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}. They were "
                    "replaced, as load_state_dict(assign=True) does; training would change tensors that nobody uses. "
                    "Load with assign=False, or make the optimizer and wrap it afterwards"
                )
