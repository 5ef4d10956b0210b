"""What a value is and whether it can travel: compared on all ranks before anything is done with it."""

from __future__ import annotations

import numbers
import pickle
from typing import Any

import numpy as np

from ..channel import Channel
from ..errors import ConfigurationError

__all__ = ["ONE_KIND", "describe_value", "pickled", "unpickled"]

ONE_KIND = "Pass a value of one shape and dtype on every rank; ps.Metric and ps.allgather() take what differs"


def pickled(value: Any) -> bytes:
    """Return a value as bytes, or why it does not pickle: the other ranks wait for one or the other."""
    try:
        return b"+" + pickle.dumps(value)
    except Exception as error:
        return b"-" + f"{type(error).__name__}: {error}".encode()


def unpickled(channel: Channel, data: bytes, sender: int) -> Any:
    """Return the value that a rank passed to :func:`pickled`.

    Raises:
        ConfigurationError: it does not pickle there; the same on every rank.
    """
    if data[:1] == b"-":
        raise ConfigurationError(
            f"rank {channel.rank}: the value of rank {sender} cannot be pickled, so it cannot travel "
            f"({data[1:].decode('utf-8', 'replace')}). Pass plain values, or objects of classes at the top of a module"
        )
    return pickle.loads(data[1:])


def describe_value(value: Any) -> tuple[str, list[str]]:
    """Return what must be equal on all ranks of a number, tensor or array; and what keeps it from being summed.

    Single numbers of any kind may meet: one rank's loss may be plain 0.0.
    """
    if hasattr(value, "detach"):
        from .. import tensor_kinds

        parts = tensor_kinds.plain_parts(value)
        kind = tensor_kinds.described(value)
        if parts is None or len(parts) != 1 or tensor_kinds.is_uninitialized(value):
            return f"a tensor: {kind}", [f"a tensor of {kind}: expected plain values, as .to_dense() gives them"]
        if not value.shape:
            return "a complex number" if value.is_complex() else "a number", []
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} and shape {list(value.shape)}", []
    if isinstance(value, np.ndarray | np.generic):
        kind = f"{value.dtype} and shape {list(value.shape)}"
        if value.dtype.kind not in "biufc":
            return f"an array of {kind}", [f"an array of {kind}: expected numbers"]
        if not value.shape:
            return "a complex number" if value.dtype.kind == "c" else "a number", []
        return f"an array of {kind}", []
    if isinstance(value, numbers.Number):
        return "a complex number" if isinstance(value, complex) else "a number", []
    named = "None" if value is None else f"a {type(value).__name__}"
    return named, [f"{named}: expected a number, a torch tensor or a numpy array. allgather() takes anything"]
