"""A running mean over steps and ranks, for which no step waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .arguments import Communicator
from .channel import Channel
from .collectives import together
from .errors import ConfigurationError, MismatchError

__all__ = ["Metric"]


class Metric:
    """The mean of values over steps and ranks: sum of v n over sum of n.

    Averaging a loss over ranks in every step makes every step wait for the slowest rank, and what gossip gains is lost.
    Here :meth:`update` is local. :meth:`compute` is collective: call it once, at the end of an epoch.

    Args:
        comm: None for all ranks of the job.

    >>> from pushsum_opt import testing
    >>> def epoch(comm):
    ...     metric = Metric(comm=comm)
    ...     metric.update(1.0 + comm.rank, n=1 + 2 * comm.rank)
    ...     return metric.local, metric.compute()
    >>> testing.run(2, epoch)
    [(1.0, 1.75), (2.0, 1.75)]
    """

    def __init__(self, *, comm: Communicator | None = None) -> None:
        self._comm = comm
        self.reset()

    def reset(self) -> None:
        """Forget all values. Local."""
        self._total: Any = None  # sum of v n on this rank: None, a float, or a float64 tensor or array
        self._count: Any = 0.0

    def update(self, value: Any, n: Any = 1) -> None:
        """Count a value that is the mean of n samples. Local, and without a wait for the device.

        Args:
            value: v: a number, a torch tensor or a numpy array; always of one shape.
            n: how many samples it is the mean of, >= 0; a number, or a tensor of one element. With n = 0 nothing is
                counted, whatever the value is: the mean of no samples is nan.

        Raises:
            ConfigurationError: a value has another shape than those before, or is complex; n is negative or nan.
        """
        value, n = _widened(value), _widened(n)
        if _shape(n) not in ((), (1,)):
            raise ConfigurationError(f"n has shape {list(_shape(n))}: expected one number, of how many samples")
        n = n.reshape(()) if hasattr(n, "reshape") else n
        if self._total is not None and _shape(value) != _shape(self._total):
            raise ConfigurationError(
                f"a metric got a value of shape {list(_shape(value))} after values of shape "
                f"{list(_shape(self._total))}. Use a metric for each, or reset() in between"
            )
        if isinstance(n, float) and not n >= 0:
            raise ConfigurationError(f"n={n:g}: expected the number of samples that the value is the mean of, >= 0")
        total = _times(value, _beside(n, value))
        self._total = total if self._total is None else _plus(self._total, total)
        self._count = _plus(self._count, n)

    @property
    def local(self) -> Any:
        """This rank's own mean, for a progress bar: a float, or an array; nan where nothing was counted. Local.

        On a device it waits for the values: read it every now and then.
        """
        count = float(self._count)
        return _mean(_numpy(0.0 if self._total is None else self._total), count)

    def compute(self) -> Any:
        """Collective. Return the mean over all ranks, the same on every rank: a float, or an array of float64.

        A rank that has counted nothing counts as nothing; nan where none has. The metric goes on: see :meth:`reset`.

        Raises:
            MismatchError: the values of the ranks have different shapes.
        """
        return self.compute_all({"the metric": self}, comm=self._comm)["the metric"]

    @staticmethod
    def compute_all(metrics: Mapping[str, Metric], *, comm: Communicator | None = None) -> dict[str, Any]:
        """Collective. Return the means of several metrics by name; the ranks meet once for all of them.

        Args:
            metrics: the same names on every rank.
            comm: None for all ranks of the job.

        >>> from pushsum_opt import testing
        >>> def epoch(comm):
        ...     metrics = {"loss": Metric(), "accuracy": Metric()}
        ...     metrics["loss"].update(float(comm.rank))
        ...     metrics["accuracy"].update(0.25)
        ...     return Metric.compute_all(metrics, comm=comm)
        >>> testing.run(2, epoch)[1]
        {'loss': 0.5, 'accuracy': 0.25}
        """
        return together(comm, "Metric.compute()", lambda channel: _compute(channel, metrics))

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's sums, for a checkpoint. Local."""
        total = None if self._total is None else _numpy(self._total).tolist()
        return {"total": total, "count": float(self._count)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned. Local."""
        total = state_dict["total"]
        self._total = np.asarray(total, dtype=np.float64) if isinstance(total, list) else total
        self._count = state_dict["count"]

    def __repr__(self) -> str:
        return f"Metric(local={self.local}, count={float(self._count):g})"


def _compute(channel: Channel, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    totals = {name: None if m._total is None else _numpy(m._total) for name, m in metrics.items()}
    mine = [[name, None if t is None else list(t.shape)] for name, t in totals.items()]
    everyone = channel.gather_objects(mine, "Metric.compute()")
    shapes = _agreed(channel.rank, everyone)
    held = {name: np.zeros(shapes[name]) if t is None else t for name, t in totals.items()}
    flat = [np.append(t, float(metrics[name]._count)) for name, t in held.items()]
    summed = np.concatenate([np.empty(0), *flat])
    channel.sum(summed, "Metric.compute()")
    parts = np.split(summed, np.cumsum([part.size for part in flat])[:-1]) if flat else []
    return {
        name: _mean(part[:-1].reshape(shapes[name]), float(part[-1])) for name, part in zip(totals, parts, strict=True)
    }


def _widened(value: Any) -> Any:
    """Return a value in float64, where it lies; a float for a plain number."""
    if hasattr(value, "detach"):
        import torch

        if value.is_complex():
            raise ConfigurationError("a metric got a complex value: expected a real one, such as its abs()")
        value = value.detach()
        return value.to(torch.float32 if value.device.type == "mps" else torch.float64)  # mps has no float64
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ConfigurationError(f"a metric got a {type(value).__name__}: expected a number, a tensor or an array")
    return float(array) if array.ndim == 0 else array.astype(np.float64)


def _beside(value: Any, other: Any) -> Any:
    """Return ``value`` as something that ``other`` can be combined with, without a wait where both are on a device."""
    if hasattr(value, "detach"):
        return value.to(other.device, non_blocking=True) if hasattr(other, "detach") else value
    if hasattr(other, "detach") and isinstance(value, np.ndarray):
        import torch

        return torch.from_numpy(value).to(other)
    return value


def _times(value: Any, n: Any) -> Any:
    """Return v n, and 0 where n is 0, also for a v of inf or nan."""
    product = value * n
    if hasattr(product, "detach"):
        return product.masked_fill(product.new_zeros(()) == n, 0.0)
    return np.where(n == 0, 0.0, product)[()]


def _plus(total: Any, value: Any) -> Any:
    """Add; out of place, so that values made in inference mode can be added outside of it."""
    if isinstance(total, np.ndarray) and hasattr(value, "detach"):
        total = _beside(total, value)
    return total + _beside(value, total)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _numpy(value: Any) -> Any:
    return np.asarray(value.cpu().numpy() if hasattr(value, "detach") else value, dtype=np.float64)


def _mean(total: Any, count: float) -> Any:
    mean = total / count if count else np.full_like(total, np.nan)
    return mean.item() if mean.ndim == 0 else mean


def _agreed(rank: int, everyone: list[Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every metric; () where no rank has counted anything.

    Raises:
        MismatchError: the same on every rank.
    """
    names = [[name for name, _ in one] for one in everyone]
    for other, its in enumerate(names):
        if its != names[0]:
            raise MismatchError(
                f"rank {rank}: the ranks compute different metrics: {names[0]} on rank 0, {its} on rank {other}. Pass "
                "the same names on every rank, in the same order"
            )
    shapes: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(names[0]):
        known = {other: tuple(one[index][1]) for other, one in enumerate(everyone) if one[index][1] is not None}
        if len(set(known.values())) > 1:
            first = next(iter(known))
            bad = next(other for other, shape in known.items() if shape != known[first])
            raise MismatchError(
                f"rank {rank}: {name} has values of shape {list(known[first])} on rank {first} and "
                f"{list(known[bad])} on rank {bad}: expected one shape on every rank"
            )
        shapes[name] = next(iter(known.values()), ())
    return shapes
