"""Sums of some elements of z: on the host they are known at once, an accelerator finds them later."""

from __future__ import annotations

import numpy as np

from .primitives import Values

__all__ = ["Sums"]


class Sums:
    """Sums that are known.

    Args:
        values: float64, shape (sums,); None where there was no memory to find them.
    """

    def __init__(self, values: Values | None) -> None:
        self._values = values

    def result(self) -> Values | None:
        """Return them; None where one is inf or nan, or where they could not be found. Wait where that is needed."""
        return self._values if self._values is not None and np.isfinite(self._values).all() else None
