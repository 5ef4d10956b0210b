"""Broadcasts and averages of the user's own values, over the ranks of a communicator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from ..arguments import Communicator
from ..channel import Channel
from ..channel.agreement import agree
from ..channel.copying import broadcast_bytes, broadcast_tensors
from ..channel.together import together
from ..errors import ConfigurationError
from ..job import world
from ..push_sum.member import newest
from .values import ONE_KIND, describe_value, pickled, unpickled

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["average", "broadcast_object", "broadcast_parameters"]


def broadcast_parameters(
    module: nn.Module | Mapping[str, Tensor], *, root: int = 0, comm: Communicator | None = None
) -> None:
    """Collective. Copy rank ``root``'s parameters and buffers to every rank, bit for bit, in place.

    Where an interrupt on any rank ends it early, each tensor is whole, root's or what it was; call it again on every
    rank.

    Args:
        module: a torch module, or a mapping from names to tensors such as ``module.state_dict()``.
        root: the rank whose values win.
        comm: None for all ranks of the job.

    Raises:
        MismatchError: on every rank, where names, shapes or dtypes differ, or ``root`` does; nothing is copied then.
    """
    if isinstance(module, Mapping):
        tensors = dict(module)
    else:
        tensors = dict([*module.named_parameters(), *module.named_buffers()])

    def copy(channel: Channel) -> None:
        _check_root(channel, root)
        broadcast_tensors(channel, tensors, root)

    together(comm, "ps.broadcast_parameters()", copy)


def _check_root(channel: Channel, root: Any) -> None:
    agree(channel, {"root": str(root)}, fix="Pass the same root on every rank")
    if isinstance(root, bool) or not isinstance(root, int) or not 0 <= root < channel.size:
        raise ConfigurationError(f"rank {channel.rank}: root={root!r}: expected a rank, 0 to {channel.size - 1}")


def broadcast_object(value: Any, *, root: int = 0, comm: Communicator | None = None) -> Any:
    """Collective. Return rank ``root``'s ``value`` on every rank; anything that pickles.

    >>> from pushsum_opt import testing
    >>> testing.run(2, lambda comm: broadcast_object({"seed": comm.rank + 7}, comm=comm))
    [{'seed': 7}, {'seed': 7}]
    """

    def copy(channel: Channel) -> Any:
        _check_root(channel, root)
        data = broadcast_bytes(channel, pickled(value) if channel.rank == root else b"", root)
        received = unpickled(channel, data, root)
        return value if channel.rank == root else received

    return together(comm, "ps.broadcast_object()", copy)


@overload
def average(value: Tensor, *, data_weight: float | None = ..., comm: Communicator | None = ...) -> Tensor: ...
@overload
def average(
    value: npt.NDArray[Any], *, data_weight: float | None = ..., comm: Communicator | None = ...
) -> npt.NDArray[Any]: ...
@overload
def average(
    value: float | np.floating[Any] | np.integer[Any] | np.bool_,
    *,
    data_weight: float | None = ...,
    comm: Communicator | None = ...,
) -> float: ...
@overload
def average(value: complex, *, data_weight: float | None = ..., comm: Communicator | None = ...) -> complex: ...
def average(value: Any, *, data_weight: float | None = None, comm: Communicator | None = None) -> Any:
    """Collective. Return sum_i v_i x_i / sum_i v_i over ranks, the same on every rank, summed in float64.

    Args:
        value: x_i: a number (a float comes back), a torch tensor or a numpy array (a new one of its shape and dtype;
            of float64 where it holds ints or bools).
        data_weight: v_i; None: that of the newest wrapped optimizer on this communicator, or 1 if there is none.

    Raises:
        MismatchError: on every rank, where shapes or dtypes differ.
        ConfigurationError: on every rank, where the values are none of these.

    >>> from pushsum_opt import testing
    >>> testing.run(2, lambda comm: average(float(comm.rank), data_weight=1.0 + 2.0 * comm.rank, comm=comm))
    [0.75, 0.75]
    """
    return together(comm, "ps.average()", lambda channel: _average(channel, value, data_weight, comm))


def _average(channel: Channel, value: Any, data_weight: float | None, comm: Any) -> Any:
    weight, why_not = _usable_weight(_newest_data_weight(comm) if data_weight is None else data_weight)
    described, unusable = describe_value(value)
    # Compared before anything is refused: so a mistake on one rank is the same error on all, and none is left waiting.
    agree(channel, {"the value given to average()": described, **why_not}, fix=ONE_KIND)
    for what in (*why_not.values(), *unusable):
        raise ConfigurationError(f"rank {channel.rank}: average(): {what}")
    is_tensor = hasattr(value, "detach")
    array = np.asarray(value.detach().cpu().to(_widest_dtype(value)).numpy() if is_tensor else value)
    array = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    total = np.append(array.reshape(-1).view(np.float64) * weight, weight)
    channel.sum(total, "ps.average()")
    mean = (total[:-1] / total[-1]).view(array.dtype).reshape(array.shape)
    if is_tensor:
        import torch

        whole = not (value.is_floating_point() or value.is_complex())
        return torch.from_numpy(mean).to(value.device) if whole else torch.from_numpy(mean).to(value)
    if isinstance(value, np.ndarray):
        return mean if value.dtype.kind in "biu" else mean.astype(value.dtype)
    return mean.item()


def _usable_weight(given: Any) -> tuple[float, dict[str, str]]:
    """Return a data weight, and what is wrong with it, if anything."""
    try:
        weight = float(given)
    except (TypeError, ValueError):
        weight = float("nan")
    if 0 < weight < float("inf"):
        return weight, {}
    return weight, {"data_weight": f"data_weight={given!r}: expected a finite number above 0"}


def _newest_data_weight(comm: Any) -> float:
    member = newest(world.communicator(comm))
    return 1.0 if member is None else member.data_weight


def _widest_dtype(tensor: Tensor) -> torch.dtype:
    import torch

    return torch.complex128 if tensor.is_complex() else torch.float64
