"""What a kind of array must be able to do; everything else about memory is written in these terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .plan import Piece, TensorSpec

__all__ = ["Array", "Primitives", "Values"]

Array = Any  # a torch tensor or a numpy array: one kind per memory
Values = npt.NDArray[np.float64]


class Primitives(ABC):
    """The primitives of one kind of array."""

    _xp: Any
    """The module of the arrays, numpy or torch, for what both call by the same name."""

    @abstractmethod
    def _describe(self, tensor: Array, name: str) -> TensorSpec:
        """Return the spec of a tensor, or raise ConfigurationError where it cannot be exchanged."""

    @abstractmethod
    def _position(self, tensor: Array) -> object:
        """Return a value that changes when the tensor moves in memory or changes its strides; cheap."""

    @abstractmethod
    def _address(self, tensor: Array) -> int:
        """Return the address of the first element."""

    @abstractmethod
    def _lie_at(self, flats: Sequence[Array], addresses: npt.NDArray[np.int64]) -> bool:
        """Tell whether flat arrays, which lay at these addresses, still do: an array may get other memory."""

    @abstractmethod
    def _count_writes(self, flats: Sequence[Array]) -> None:
        """Called after elements were written by their addresses: who counts changes of an array, counts one."""

    @abstractmethod
    def _piece_view(self, tensor: Array, piece: Piece) -> Array:
        """Return a piece of a dense tensor as a flat view; of any other tensor, the tensor itself."""

    @abstractmethod
    def _allocate(self, count: int, dtype: str, device: str) -> Array:
        """Return a flat array that is not initialised."""

    @abstractmethod
    def _split(self, flat: Array, sizes: list[int]) -> Sequence[Array]:
        """Cut a flat array into flat views of these lengths."""

    @abstractmethod
    def _permute(self, array: Array, axes: list[int]) -> Array:
        """Return a view with the axes in another order."""

    @abstractmethod
    def _wire_bytes(self, flat: Array) -> Any:
        """Return a flat array as the bytes that a transport takes, without a copy."""

    @abstractmethod
    def _view_as(self, flat_bytes: Array, dtype: str) -> Array:
        """Return bytes as a flat array of ``dtype``, without a copy."""

    @abstractmethod
    def _copy(self, destinations: Sequence[Array], sources: Sequence[Array]) -> None:
        """Copy each source into its destination, casting."""

    def _join(self, flat: Array, parts: Sequence[Array]) -> None:
        """Copy flat parts, one after the other, into a flat array of their length, casting."""
        self._copy(self._split(flat, [len(part) for part in parts]), parts)

    @abstractmethod
    def _cast(self, destination: Array, source: Array) -> None:
        """Copy one array into another of the same shape, casting to whatever dtype that has."""

    @abstractmethod
    def _lerp(self, destinations: Sequence[Array], others: Sequence[Array], fraction: float) -> None:
        """Move each destination by ``fraction`` of the way to the other, casting the other to its dtype."""

    @abstractmethod
    def _widen(self, array: Array, dtype: str) -> Array:
        """Return the array in another dtype; a copy only where that is needed."""

    @abstractmethod
    def _all_finite(self, array: Array) -> bool:
        """Tell whether no element is inf or nan."""

    @abstractmethod
    def _choose_finite(self, mine: Array, theirs: Array) -> Array:
        """Return mine where it is finite and theirs elsewhere."""

    @abstractmethod
    def _choose_number(self, mine: Array, theirs: Array) -> Array:
        """Return theirs where mine is nan, and mine elsewhere."""

    @abstractmethod
    def _to_numpy(self, array: Array) -> Values:
        """Return an array of a dtype that numpy has as numpy on the host; one that lies there shares its memory."""

    def _to_host(self, array: Array) -> Array:
        """Return a flat array on the host; a copy only where that is needed."""
        return array

    @abstractmethod
    def _from_bytes(self, data: npt.NDArray[np.uint8]) -> Array:
        """Return bytes on the host as an array of this kind, without a copy."""

    @abstractmethod
    def _from_numpy(self, values: Values, device: str) -> Array:
        """Return the opposite of :meth:`_to_numpy`."""
