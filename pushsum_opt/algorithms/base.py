"""What the optimizer asks of an algorithm that is built on rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import ConfigurationError
from ..graphs import Graph
from ..push_sum import PushSum

__all__ = ["Algorithm", "count", "number"]


class Algorithm(ABC):
    """Decides what a round is: gossip, or something else that all ranks do in its place.

    An algorithm belongs to one optimizer: make a new one for each.
    """

    bound = False
    """Whether it belongs to an optimizer already."""

    def belong_to(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        """:meth:`bind`, and belong to this optimizer from now on. For the wrapper."""
        self.bind(push_sum, param_groups)
        self.bound = True

    def bind(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:  # noqa: B027
        """Receive what it works on. Called once, when the optimizer is constructed.

        Args:
            push_sum: what mixes the parameters.
            param_groups: the wrapped optimizer's groups, with their learning rates.

        Raises:
            ConfigurationError: it cannot be combined with what the optimizer was given.
        """

    in_step: ClassVar[bool] = False
    """Whether it needs ranks that take equally many rounds: not with ``staleness="unbounded"``."""

    moves_alone: ClassVar[bool] = False
    """Whether it moves the parameters by itself, without the points that ``gossip_state`` names."""

    synchronous: ClassVar[bool] = False
    """Whether it needs ``staleness=0``."""

    local_steps: int | None = None
    """After how many local steps a round follows. None: the optimizer's ``gossip_every`` says it."""

    def default_graph(self) -> Graph | None:
        """Return who sends to whom where the optimizer is given no graph; None: the default of its size."""
        return None

    @abstractmethod
    def round(self, push_sum: PushSum, param_groups: list[dict[str, Any]]) -> None:
        """Do round ``push_sum.round``: call ``push_sum.mix()`` or ``push_sum.average()`` once.

        The choice must depend on the number of the round alone, because all ranks must make the same one.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what must be saved beside parameters, optimizer state and the number of the round. Local."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # noqa: B027
        """Continue from what :meth:`state_dict` returned. Local."""

    @abstractmethod
    def __repr__(self) -> str:
        """Name the algorithm and its settings: all ranks compare this text."""


def count(name: str, value: Any, least: int) -> int:
    """Return an argument that counts rounds or steps, or raise ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r}: expected an int of at least {least}")
    return value


def number(
    name: str, value: Any, *, above: float = float("-inf"), least: float = float("-inf"), below: float = float("inf")
) -> float:
    """Return an argument that is a number within bounds, or raise ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (above < value < below and value >= least):
        low = f"above {above:g}" if above > least else f"of at least {least:g}"
        high = "a finite number" if below == float("inf") else f"a number below {below:g}"
        raise ConfigurationError(f"{name}={value!r}: expected {high}, {low}")
    return float(value)
