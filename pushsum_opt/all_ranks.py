"""What all ranks say to each other at one point of the program: barrier, allgather, sum.

Every function here is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from . import world
from .agreement import agree, gather_objects
from .collectives import SPAN, pickled, together
from .errors import ConfigurationError
from .transport import Transport
from .transport.waiting import Waiter

__all__ = ["allgather", "barrier", "sum", "sum_in_place"]

HALF = 32  # bits: an int64 is summed as two numbers that float64 holds exactly


def barrier(*, comm: Any = None) -> None:
    """Collective. Return once every rank has made this call.

    >>> from pushsum_opt import testing
    >>> testing.run(2, lambda comm: barrier(comm=comm))
    [None, None]
    """
    with together(comm, "ps.barrier()") as (channel, waiter):
        waiter.wait((channel.barrier("barrier()"),), 0)


def allgather(value: Any, *, comm: Any = None) -> list[Any]:
    """Collective. Return the values of all ranks, in the order of ranks; anything that pickles.

    >>> from pushsum_opt import testing
    >>> testing.run(2, lambda comm: allgather({"rank": comm.rank}, comm=comm))
    [[{'rank': 0}, {'rank': 1}], [{'rank': 0}, {'rank': 1}]]
    """
    mine = pickled(value, comm, "allgather()")
    with together(comm, "ps.allgather()") as (channel, waiter):
        everyone = gather_objects(channel, waiter, mine, "allgather()")
    return [pickle.loads(data) for data in everyone]


def sum(value: Any, *, comm: Any = None) -> Any:
    """Collective. Return the sum of the values of all ranks, the same bits on every rank.

    Floats are summed in float64. Ints and bools are summed exactly: Python's are of any length; tensors and arrays of
    them give int64.

    Args:
        value: a number, a torch tensor or a numpy array; of one kind, dtype and shape on every rank.

    Raises:
        MismatchError: the ranks pass values of different kinds, dtypes or shapes.
        ConfigurationError: the value is none of these.

    >>> from pushsum_opt import testing
    >>> testing.run(2, lambda comm: (sum(comm.rank + 1, comm=comm), sum(0.5, comm=comm)))
    [(3, 1.0), (3, 1.0)]
    """
    is_tensor = hasattr(value, "detach")
    if not is_tensor and not isinstance(value, bool | int | float | complex | np.ndarray | np.generic):
        # Before anything is said to the others: whoever catches this is found in another call at once.
        raise ConfigurationError(
            f"rank {world.communicator(comm).Get_rank()}: sum() of a {type(value).__name__}: expected a number, a "
            "torch tensor or a numpy array. allgather() takes anything"
        )
    with together(comm, "ps.sum()") as (channel, waiter):
        agree(channel, waiter, {"the value given to sum()": _described(value)}, {})
        if isinstance(value, bool | int):
            import builtins

            return builtins.sum(pickle.loads(x) for x in gather_objects(channel, waiter, pickle.dumps(value), "sum()"))
        array = _array(value)
        if array.dtype.kind in "biu":
            total = _sum_of_ints(channel, waiter, array)
        else:
            wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64).reshape(-1)
            sum_in_place(channel, waiter, wide.view(np.float64), "sum()")
            total = wide.reshape(array.shape)
        if is_tensor:
            import torch

            result = torch.from_numpy(total).to(value.device)
            return result if array.dtype.kind in "biu" else result.to(value.dtype)
        if not isinstance(value, np.ndarray):
            return total.item()
        return total if array.dtype.kind in "biu" else total.astype(value.dtype)


def sum_in_place(channel: Transport, waiter: Waiter, values: Any, what: str) -> None:
    """Collective. Replace a flat float64 array by its sum over ranks."""
    for start in range(0, values.size, SPAN):
        waiter.wait((channel.sum(values[start : start + SPAN], what),), 0)


def _sum_of_ints(channel: Transport, waiter: Waiter, array: Any) -> Any:
    whole = array.astype(np.int64).reshape(-1)
    halves = np.concatenate([whole >> HALF, whole & ((1 << HALF) - 1)]).astype(np.float64)
    sum_in_place(channel, waiter, halves, "sum()")
    high, low = halves.astype(np.int64).reshape(2, -1)
    return ((high << HALF) + low).reshape(array.shape)


def _array(value: Any) -> Any:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    import torch

    here = value.detach().cpu()
    if here.is_complex():
        return here.to(torch.complex128).resolve_conj().numpy()
    return here.double().numpy() if here.is_floating_point() else here.to(torch.int64).numpy()


def _described(value: Any) -> str:
    if isinstance(value, bool | int | float | complex):
        kind = "an int" if isinstance(value, int) else f"a {type(value).__name__}"
        return f"{kind}"
    holder = "tensor" if hasattr(value, "detach") else "array"
    return f"a {holder} of {str(value.dtype).removeprefix('torch.')} and shape {list(value.shape)}"
