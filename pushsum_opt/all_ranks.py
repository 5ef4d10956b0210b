"""What all ranks say to each other at one point of the program: barrier, allgather, sum.

Every function here is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from .arguments import Communicator
from .channel import Channel
from .channel.agreement import agree
from .collectives import together
from .collectives.values import ONE_KIND, describe_value, pickled, unpickled
from .errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["allgather", "barrier", "sum"]

HALF = 32  # bits: an int64 is summed as two numbers that float64 holds exactly


def barrier(*, comm: Communicator | None = None) -> None:
    """Collective. Return once every rank has made this call.

    >>> from pushsum_opt import testing
    >>> testing.run(2, lambda comm: barrier(comm=comm))
    [None, None]
    """
    together(comm, "ps.barrier()", lambda channel: channel.barrier("barrier()"))


def allgather(value: Any, *, comm: Communicator | None = None) -> list[Any]:
    """Collective. Return every rank's ``value``, in the order of ranks; anything that pickles.

    >>> from pushsum_opt import testing
    >>> testing.run(2, lambda comm: allgather({"rank": comm.rank}, comm=comm))
    [[{'rank': 0}, {'rank': 1}], [{'rank': 0}, {'rank': 1}]]
    """

    def gather(channel: Channel) -> list[Any]:
        everyone = channel.gather_bytes(pickled(value), "allgather()")
        return [unpickled(channel, data, rank) for rank, data in enumerate(everyone)]

    return together(comm, "ps.allgather()", gather)


@overload
def sum(value: Tensor, *, comm: Communicator | None = ...) -> Tensor: ...
@overload
def sum(value: npt.NDArray[Any], *, comm: Communicator | None = ...) -> npt.NDArray[Any]: ...
@overload
def sum(value: int | np.integer[Any] | np.bool_, *, comm: Communicator | None = ...) -> int: ...
@overload
def sum(value: float | np.floating[Any], *, comm: Communicator | None = ...) -> float: ...
@overload
def sum(value: complex, *, comm: Communicator | None = ...) -> complex: ...
def sum(value: Any, *, comm: Communicator | None = None) -> Any:
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
    return together(comm, "ps.sum()", lambda channel: _sum(channel, value))


def _sum(channel: Channel, value: Any) -> Any:
    is_tensor = hasattr(value, "detach")
    described, unusable = _described(value)
    # Compared before anything is refused: so a mistake on one rank is the same error on all.
    agree(channel, {"the value given to sum()": described}, fix=ONE_KIND)
    for what in unusable:
        raise ConfigurationError(f"rank {channel.rank}: sum(): {what}")
    if isinstance(value, bool | int):
        import builtins

        return builtins.sum(pickle.loads(data) for data in channel.gather_bytes(pickle.dumps(value), "sum()"))
    array = _array(value)
    if array.dtype.kind in "biu":
        total = _sum_of_ints(channel, array)
    else:
        wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64).reshape(-1)
        channel.sum(wide.view(np.float64), "sum()")
        total = wide.reshape(array.shape)
    if is_tensor:
        import torch

        result = torch.from_numpy(total).to(value.device)
        return result if array.dtype.kind in "biu" else result.to(value.dtype)
    if not isinstance(value, np.ndarray):
        return total.item()
    return total if array.dtype.kind in "biu" else total.astype(value.dtype)


def _sum_of_ints(channel: Channel, array: Any) -> Any:
    whole = array.astype(np.int64).reshape(-1)
    halves = np.concatenate([whole >> HALF, whole & ((1 << HALF) - 1)]).astype(np.float64)
    channel.sum(halves, "sum()")
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


def _described(value: Any) -> tuple[str, list[str]]:
    """Return what must be equal on all ranks, and what keeps the value from being summed."""
    if isinstance(value, int):
        return "an int", []
    if isinstance(value, float | complex) and not isinstance(value, np.generic):
        return f"a {type(value).__name__}", []
    described, unusable = describe_value(value)
    if not unusable and not (hasattr(value, "detach") or isinstance(value, np.ndarray | np.generic)):
        return described, [f"a {type(value).__name__}: expected a number, a torch tensor or a numpy array"]
    shape = getattr(value, "shape", None)
    if not unusable and not shape:  # the kind of the result depends on it: exact ints, or floats
        return f"a {'tensor' if hasattr(value, 'detach') else 'array'} of {value.dtype} and shape []", []
    return described, unusable
