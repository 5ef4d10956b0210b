"""What all ranks call together: broadcast, average, consensus distance.

Every function here is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from . import channels, ending, transport, world
from .agreement import agree
from .arguments import Communicator
from .copying import broadcast_bytes, broadcast_tensors
from .errors import ConfigurationError
from .gossip.together import Together
from .push_sum import PushSum
from .transport import Transport
from .transport.waiting import Waiter

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["average", "averaged", "broadcast_object", "broadcast_parameters", "consensus_distance", "pickled"]

ONE_KIND = "Pass a value of one shape and dtype on every rank; ps.Metric and ps.allgather() take what differs"
SPAN = 1 << 22  # elements that are summed in float64 at a time: 32 MiB


# ---------------------------------------------------------------------- over a communicator


def broadcast_parameters(
    module: nn.Module | Mapping[str, Tensor], *, root: int = 0, comm: Communicator | None = None
) -> None:
    """Collective. Copy rank ``root``'s parameters and buffers to every rank, bit for bit, in place.

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
    with together(comm, "ps.broadcast_parameters()") as (channel, waiter):
        _check_root(channel, waiter, root)
        for name, value in tensors.items():
            if not hasattr(value, "detach"):
                raise ConfigurationError(
                    f"rank {channel.job_rank()}: {name} is a {type(value).__name__}: expected torch tensors only. "
                    "broadcast_object() takes anything that pickles"
                )
        broadcast_tensors(channel, waiter, tensors, root)


def _check_root(channel: Transport, waiter: Waiter, root: Any) -> None:
    if isinstance(root, bool) or not isinstance(root, int) or not 0 <= root < channel.size:
        raise ConfigurationError(f"rank {channel.rank}: root={root!r}: expected a rank, 0 to {channel.size - 1}")
    agree(channel, waiter, {"root": str(root)}, {}, fix="Pass the same root on every rank")


def broadcast_object(value: Any, *, root: int = 0, comm: Communicator | None = None) -> Any:
    """Collective. Return rank ``root``'s ``value`` on every rank; anything that pickles.

    >>> from pushsum_opt import testing
    >>> testing.run(2, lambda comm: broadcast_object({"seed": comm.rank + 7}, comm=comm))
    [{'seed': 7}, {'seed': 7}]
    """
    is_root = world.communicator(comm).Get_rank() == root
    mine = pickled(value, comm, "broadcast_object()") if is_root else b""
    with together(comm, "ps.broadcast_object()") as (channel, waiter):
        _check_root(channel, waiter, root)
        data = broadcast_bytes(channel, waiter, mine, root)
    return value if is_root else pickle.loads(data)


def pickled(value: Any, comm: Any, call: str) -> bytes:
    """Return a value as bytes, before anything is said to the others: then they find this rank in another call.

    Raises:
        ConfigurationError: it does not pickle.
    """
    try:
        return pickle.dumps(value)
    except Exception as error:  # whatever a class does when it is pickled
        raise ConfigurationError(
            f"rank {world.communicator(comm).Get_rank()}: {call} of a {type(value).__name__}, which does not pickle "
            f"({type(error).__name__}: {error}). Send plain values, and functions by their name"
        ) from error


def average(value: Any, *, data_weight: float | None = None, comm: Communicator | None = None) -> Any:
    """Collective. Return sum_i v_i x_i / sum_i v_i over ranks, the same on every rank, summed in float64.

    Args:
        value: x_i: a number (a float comes back), a torch tensor or a numpy array (a new one of its shape and dtype).
        data_weight: v_i; None: that of the newest wrapped optimizer on this communicator, or 1 if there is none.

    Raises:
        MismatchError: on every rank, where shapes or dtypes differ.

    >>> from pushsum_opt import testing
    >>> testing.run(2, lambda comm: average(float(comm.rank), data_weight=1.0 + 2.0 * comm.rank, comm=comm))
    [0.75, 0.75]
    """
    _check_number(value, comm)
    with together(comm, "ps.average()") as (channel, waiter):
        return _average(channel, waiter, value, data_weight, comm)


def _average(channel: Transport, waiter: Waiter, value: Any, data_weight: float | None, comm: Any) -> Any:
    weight = _newest_data_weight(comm) if data_weight is None else float(data_weight)
    if not 0 < weight < float("inf"):
        raise ConfigurationError(f"rank {channel.rank}: data_weight={weight}: expected a finite number above 0")
    agree(channel, waiter, {"the value given to average()": _described(value)}, {}, fix=ONE_KIND)
    is_tensor = hasattr(value, "detach")
    array = np.asarray(value.detach().cpu().to(_wide(value)).numpy() if is_tensor else value)
    array = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    total = np.append(array.reshape(-1).view(np.float64) * weight, weight)
    for start in range(0, total.size, SPAN):
        waiter.wait((channel.sum(total[start : start + SPAN], "ps.average()"),), -1)
    mean = (total[:-1] / total[-1]).view(array.dtype).reshape(array.shape)
    if is_tensor:
        import torch

        return torch.from_numpy(mean).to(value)
    return mean.astype(value.dtype) if isinstance(value, np.ndarray) else mean.item()


def _check_number(value: Any, comm: Any) -> None:
    if not hasattr(value, "detach") and np.asarray(value).dtype.kind not in "biufc":
        raise ConfigurationError(
            f"rank {world.communicator(comm).Get_rank()}: average() of a {type(value).__name__}: expected a number, a "
            "torch tensor or a numpy array"
        )


def _described(value: Any) -> str:
    """Return what must be equal on all ranks. Single numbers of any kind may meet: one rank's loss may be plain 0.0."""
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and not shape:
        return "a complex number" if _is_complex(value) else "a number"
    holder = "tensor" if hasattr(value, "detach") else "array"
    return f"a {holder} of {str(value.dtype).removeprefix('torch.')} and shape {list(shape)}"


def _is_complex(value: Any) -> bool:
    return bool(value.is_complex()) if hasattr(value, "detach") else bool(np.iscomplexobj(value))


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
    with push_sum.failing_together(), transport.calling("consensus_distance()"):
        for chunk in push_sum.memory.exchanged:
            own = push_sum.memory.values(chunk)
            mean = own.copy()
            push_sum.waiter.wait((push_sum.transport.sum(mean, "consensus_distance"),), push_sum.round)
            own -= mean / push_sum.participants
            squares += float(own @ own)
        total = np.array([squares])
        push_sum.waiter.wait((push_sum.transport.sum(total, "consensus_distance"),), push_sum.round)
        if push_sum.hosts is not None:
            push_sum.hosts.sum(total, push_sum.round, "consensus_distance")
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
    memory.refresh()
    tensors = [tensor for tensor in memory.tensors.values() if hasattr(tensor, "detach")]
    places, lent = [], None
    if tensors or buffers is not None:  # a push-sum over numpy arrays works without torch
        from .lending import LentBuffers, Place

        places = [Place(tensor) for tensor in tensors]
        lent = LentBuffers(push_sum, buffers)
    kept = [memory.raw(chunk) for chunk in memory.chunks]
    lent_before, push_sum.on_loan = push_sum.on_loan, "averaged()"
    try:
        with push_sum.failing_together(), transport.calling("averaged()"):
            _assign_average(push_sum)
            if lent is not None:
                lent.average()
        yield
    finally:
        push_sum.on_loan = lent_before
        for place in places:
            place.restore()
        memory.refresh()
        for chunk, flat in zip(memory.chunks, kept, strict=True):
            memory.put_raw(chunk, flat)
        if lent is not None:
            lent.put_back()


def _assign_average(push_sum: PushSum) -> None:
    in_flight = list(push_sum.gossip.in_flight())
    weight = np.array([push_sum.push_weight + sum(mass for mass, _ in in_flight)])
    push_sum.waiter.wait((push_sum.transport.sum(weight, "averaged"),), push_sum.round)
    for chunk in push_sum.memory.exchanged:
        total = push_sum.memory.numerator(chunk, push_sum.push_weight)
        for mass, slabs in in_flight:
            total += mass * push_sum.memory.received_values(chunk, slabs[chunk.index])
        push_sum.waiter.wait((push_sum.transport.sum(total, "averaged"),), push_sum.round)
        push_sum.memory.assign(chunk, total / weight[0])
    push_sum.put_together()


def _push_sum_of(optimizer: Any) -> PushSum:
    push_sum = getattr(optimizer, "push_sum", optimizer)
    if not isinstance(push_sum, PushSum):
        raise ConfigurationError(f"expected a PushSumOptimizer or a PushSum, got {type(optimizer).__name__}")
    return push_sum


# ---------------------------------------------------------------------- which channel, which weight


@contextmanager
def together(comm: Any, call: str) -> Iterator[tuple[Transport, Waiter]]:
    """Collective. Give the transport that calls like ``ps.average()`` use on a communicator; made at the first one.

    Raises:
        MismatchError: the ranks make different calls; the same on every rank.
        PeerFinished: a rank has ended its program.
    """
    if comm is not None:
        transport.check(comm)
    comm = world.communicator(comm)
    ending.stop_all_on_error()
    with transport.calling(call):
        pair = channels.found(comm)
        if pair is None:
            pair = channels.opened(comm)  # which compares the calls
        elif pair[0].size > 1:
            meeting = Together(pair[0], call, -1)
            pair[1].wait((meeting.ticket,), -1)
            meeting.check()
        yield pair


def _newest_data_weight(comm: Any) -> float:
    push_sum = PushSum.newest(world.communicator(comm))
    if push_sum is None:
        return 1.0
    return push_sum.data_weight
