"""How a push-sum exchanges: the arguments of its constructor that are plain values, and what a wrapper adds to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arguments import DType, Nonfinite, Staleness
from ..channel import Channel
from ..errors import ConfigurationError

__all__ = ["CALL", "Options", "WrapperOptions"]

CALL = "PushSum(...)"


@dataclass(frozen=True)
class Options:
    """How to exchange: the arguments of :class:`~pushsum_opt.PushSum` that are plain values.

    Raises:
        ConfigurationError: a value cannot be used.
    """

    staleness: Staleness
    data_weight: float
    wire_dtype: DType | None
    nonfinite: Nonfinite
    timeout: float
    rate_correction: bool

    def __post_init__(self) -> None:
        staleness, timeout = self.staleness, self.timeout
        counted = isinstance(staleness, int) and not isinstance(staleness, bool) and staleness >= 0
        if not counted and staleness != "unbounded":
            raise ConfigurationError(f"staleness={staleness!r}: expected an int of at least 0, or 'unbounded'")
        if isinstance(self.data_weight, bool) or not isinstance(self.data_weight, int | float | np.number):
            raise ConfigurationError(f"data_weight={self.data_weight!r}: expected a number above 0")
        if self.nonfinite not in ("raise", "skip"):
            raise ConfigurationError(f"nonfinite={self.nonfinite!r}: expected 'raise' or 'skip'")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
            raise ConfigurationError(f"timeout={timeout!r}: expected seconds, a finite number above 0")


@dataclass(frozen=True)
class WrapperOptions:
    """What a wrapper around a push-sum adds."""

    owner: Any = None
    """The wrapper. Once it is dropped on every rank, the next construction closes what it owned."""
    by_element: Collection[str] = ()
    """Names of tensors that are merged element by element, as buffers are: an element that is inf or nan, here or
    there, stays what it is here, and is no error."""
    alike: Mapping[str, str] = field(default_factory=dict)
    """What must be equal on all ranks, by names that a user understands. It is compared first: a difference here causes
    differences of tensors."""
    leave_out: Callable[[Iterable[Channel]], Collection[str]] | None = None
    """Collective over channels; returns the names of tensors that are not exchanged after all."""
