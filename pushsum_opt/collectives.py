"""What all ranks call together: broadcast, average, consensus distance.

Every function here is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import numbers
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from . import ending, transport, world
from .arguments import Communicator
from .channel import Channel, by_communicator
from .channel.agreement import agree
from .channel.copying import broadcast_bytes, broadcast_tensors
from .errors import ConfigurationError
from .interrupts import held_back
from .push_sum import PushSum
from .push_sum.averaging import exact_average

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["average", "averaged", "broadcast_object", "broadcast_parameters", "consensus_distance"]

ONE_KIND = "Pass a value of one shape and dtype on every rank; ps.Metric and ps.allgather() take what differs"


# ---------------------------------------------------------------------- over a communicator


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
    with together(comm, "ps.broadcast_parameters()") as channel:
        _check_root(channel, root)
        broadcast_tensors(channel, tensors, root)


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
    with together(comm, "ps.broadcast_object()") as channel:
        _check_root(channel, root)
        data = broadcast_bytes(channel, pickled(value) if channel.rank == root else b"", root)
        received = unpickled(channel, data, root)
    return value if channel.rank == root else received


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
    with together(comm, "ps.average()") as channel:
        return _average(channel, value, data_weight, comm)


def _average(channel: Channel, value: Any, data_weight: float | None, comm: Any) -> Any:
    weight, why_not = _usable_weight(_newest_data_weight(comm) if data_weight is None else data_weight)
    described, unusable = describe_value(value)
    # Compared before anything is refused: so a mistake on one rank is the same error on all, and none is left waiting.
    agree(channel, {"the value given to average()": described, **why_not}, fix=ONE_KIND)
    for what in (*why_not.values(), *unusable):
        raise ConfigurationError(f"rank {channel.rank}: average(): {what}")
    is_tensor = hasattr(value, "detach")
    array = np.asarray(value.detach().cpu().to(_wide(value)).numpy() if is_tensor else value)
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


def describe_value(value: Any) -> tuple[str, list[str]]:
    """Return what must be equal on all ranks of a number, tensor or array; and what keeps it from being summed.

    Single numbers of any kind may meet: one rank's loss may be plain 0.0.
    """
    if hasattr(value, "detach"):
        from . import tensor_kinds

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


def _wide(tensor: Tensor) -> torch.dtype:
    import torch

    return torch.complex128 if tensor.is_complex() else torch.float64


# ---------------------------------------------------------------------- over the ranks of a PushSum


def consensus_distance(optimizer: Any) -> float:
    """Collective. Return the root mean square over ranks of the norm of z_i - mean z.

    Args:
        optimizer: a :class:`~pushsum_opt.PushSumOptimizer` or a :class:`~pushsum_opt.PushSum`.

    0 when all ranks hold the same parameters.
    """
    push_sum = _push_sum_of(optimizer)
    push_sum.meet("consensus_distance()")
    squares = 0.0
    with push_sum.collective("consensus_distance()"):
        moments = push_sum.moments()
        for chunk in push_sum.memory.exchanged:
            own = push_sum.memory.values(chunk)
            for place in push_sum.memory.places(chunk, moments):
                own[place] = 0.0
            if chunk.by_element:
                own[~np.isfinite(own)] = 0.0
            mean = own.copy()
            push_sum.channel.sum(mean, "consensus_distance", round=push_sum.round)
            own -= mean / push_sum.participants
            squares += float(own @ own)
        total = np.array([squares])
        push_sum.channel.sum(total, "consensus_distance", round=push_sum.round)
        push_sum.host.sum(total, push_sum.round, "consensus_distance")
    return float(np.sqrt(total[0] / push_sum.participants))


@contextmanager
def averaged(push_sum: PushSum, buffers: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Collective. Inside, tensors and buffers hold the exact weighted average over ranks; afterwards, what they held.

    The average is sum_i x_i / sum_i w_i, mass in flight included. Nothing in flight is merged, so the trajectory is the
    same with and without; except that asynchronous ranks, whose trajectory is never the same twice, merge what has come
    before they keep what the tensors hold.

    Args:
        buffers: by name. Those of floating and complex dtypes are averaged with the data weights; sparse, quantized and
            other special ones stay what they are.

    Raises:
        MismatchError: on every rank, where shapes or dtypes of buffers differ between ranks.
    """
    push_sum.settle("averaged()")
    memory = push_sum.memory
    with push_sum.failing_together(), transport.calling("averaged()"):
        memory.refresh()
        tensors = [tensor for tensor in memory.tensors.values() if hasattr(tensor, "detach")]
        places, lent = [], None
        if tensors or buffers is not None:  # a push-sum over numpy arrays works without torch
            from .lending import LentBuffers, Place

            places = [Place(tensor) for tensor in tensors]
            lent = LentBuffers(push_sum, buffers)
        kept = [memory.raw(chunk) for chunk in memory.chunks]
    try:
        with push_sum.lent("averaged()"):
            with push_sum.collective("averaged()"):
                _assign_average(push_sum)
                if lent is not None:
                    lent.average()
            yield
    finally:
        with held_back():  # a second Ctrl-C waits until the tensors are what they were
            for place in places:
                place.restore()
            memory.refresh()
            for chunk, flat in zip(memory.chunks, kept, strict=True):
                memory.put_raw(chunk, flat)
            if lent is not None:
                lent.put_back()


def _assign_average(push_sum: PushSum) -> None:
    in_flight = push_sum.gossip.in_flight()
    memory, weight = push_sum.memory, push_sum.push_weight
    for chunk, mean in exact_average(push_sum.channel, memory, weight, in_flight, "averaged", push_sum.round):
        memory.assign(chunk, mean)
    push_sum.put_together()


def _push_sum_of(optimizer: Any) -> PushSum:
    push_sum = getattr(optimizer, "push_sum", optimizer)
    if not isinstance(push_sum, PushSum):
        raise ConfigurationError(f"expected a PushSumOptimizer or a PushSum, got {type(optimizer).__name__}")
    return push_sum


# ---------------------------------------------------------------------- which channel, which weight


@contextmanager
def together(comm: Any, call: str) -> Iterator[Channel]:
    """Collective. Give the channel that calls like ``ps.average()`` use on a communicator; made at the first one.

    Raises:
        MismatchError: the ranks make different calls; the same on every rank.
        PeerFinished: a rank has ended its program.
        PeerFailed: a rank has left the call half-way, by an interrupt or an error of its own.
    """
    if comm is not None:
        transport.check(comm)
    comm = world.communicator(comm)
    ending.stop_all_on_error()
    with transport.calling(call):
        channel = by_communicator.found(comm)
        opened = channel is None
        if channel is None:
            channel = by_communicator.opened(comm)  # which compares the calls
        with by_communicator.leaving_together(comm, channel):
            if not opened and channel.size > 1:
                channel.meet(call)
            yield channel


def _newest_data_weight(comm: Any) -> float:
    push_sum = PushSum.newest(world.communicator(comm))
    if push_sum is None:
        return 1.0
    return push_sum.data_weight
