"""Metrics: a listener that hands the numbers of its rank on, every so many rounds."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

from ...clock import Clock
from ...errors import ConfigurationError
from .about import describe
from .collected import Collected
from .moved import Moved
from .sinks import JsonLines, Prometheus, Sink, TensorBoard

__all__ = ["Metrics"]


class Metrics(Collected):
    """Writes numbers of this rank every so many rounds. Local: each rank writes its own.

    Step time (quantiles, mean, max), time waited by the rank waited for, ages of messages, push weight, bytes, skipped
    chunks, missed blocks, the seconds of each :func:`span`, and what :meth:`log` adds. Also the means over ranks of
    :meth:`PushSum.means`: of what ranks report, the consensus distance, and the mass held and in flight. All ranks
    measure them then.

    Args:
        optimizer: a :class:`~pushsum_opt.PushSumOptimizer` or a :class:`~pushsum_opt.PushSum`.
        jsonl: a folder; each rank writes a file of JSON lines there.
        tensorboard: a folder; each rank writes a run for TensorBoard there. It needs the extra ``observe``.
        prometheus: a port; rank r answers Prometheus on port ``prometheus + r``. It needs the extra ``observe``.
        address: on which network address these ports are opened; the default is reached from this host alone.
        every: rounds from one row to the next.
        means: whether rows have what :meth:`PushSum.means` returns. All ranks measure the consensus distance then,
            which takes time in each window of the graph: 1 ms for ResNet-50, 9 ms for a model of 1000 tensors.
        clock: returns this rank's seconds; None: the clock of the machine that only grows.

    Raises:
        ConfigurationError: an argument cannot be used, a package is missing, or a port is taken.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        jsonl: str | os.PathLike[str] | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
        prometheus: int | None = None,
        address: str = "127.0.0.1",
        every: int = 10,
        means: bool = True,
        clock: Clock | None = None,
    ) -> None:
        push_sum = getattr(optimizer, "push_sum", optimizer)
        rank = push_sum.members[push_sum.rank]
        if every < 1:
            raise ConfigurationError(f"rank {rank}: every={every!r}: expected a number of rounds, at least 1")
        if jsonl is None and tensorboard is None and prometheus is None:
            raise ConfigurationError(f"rank {rank}: Metrics(): expected jsonl=, tensorboard= or prometheus=")
        super().__init__(rank, lambda: push_sum.members, push_sum.transport.clock if clock is None else clock)
        self._push_sum = push_sum
        self._every = every
        self._rows_from = push_sum.round
        self._closed = False
        wrapper = weakref.ref(optimizer)  # nothing here may keep it alive: it is closed once the program has dropped it
        self._moved = Moved(lambda: _parameters(wrapper(), push_sum))
        self._sinks: list[Sink] = []
        if tensorboard is not None:
            self._sinks.append(TensorBoard(Path(tensorboard), rank))
        if prometheus is not None:
            self._sinks.append(Prometheus(prometheus, address, rank))
        if jsonl is not None:
            file = JsonLines(Path(jsonl), lambda: describe(wrapper(), push_sum, every), lambda: push_sum.losses)
            if not push_sum.member.survival.waits:
                file.begin()
            self._sinks.append(file)
        self._means = push_sum.means if means else dict
        self._means()  # from now on all ranks measure what it has
        push_sum.subscribe(self)
        push_sum.member.before_close.append(self.close)

    def log(self, **values: Any) -> None:
        """Add numbers of your own, such as ``log(loss=loss)``; a row has the mean of what was logged since the last.

        Args:
            values: by names; numbers, or tensors of one element.
        """
        self._add({name: _number(value) for name, value in values.items()})

    def round_ends(self, round: int, push_weight: float) -> None:
        """A row is due after every so many rounds."""
        super().round_ends(round, push_weight)
        if (round + 1 - self._rows_from) % self._every == 0:
            self._write()

    def close(self) -> None:
        """Write what is left and end. Closing the optimizer does it too. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._push_sum.unsubscribe(self)
        if not self._push_sum.member.survival.waits:  # a spare that was not taken in is of no run
            self._write()
        for sink in self._sinks:
            sink.close()

    def _write(self) -> None:
        numbers = self._row()
        if not self._closed:
            numbers.moved = self._moved.since_then(self._push_sum.round)
        numbers.means = self._means()
        for sink in self._sinks:
            sink.take(numbers)


def _parameters(optimizer: Any, push_sum: Any) -> list[Any]:
    """Return what is exchanged and stepped, so no buffers; all that is exchanged, where that is parts of parameters."""
    stepped = {id(one) for group in getattr(optimizer, "param_groups", ()) for one in group["params"]}
    exchanged = list(push_sum.memory.tensors.values())
    return [one for one in exchanged if id(one) in stepped] or exchanged


def _number(value: Any) -> float:
    return float(value.detach() if hasattr(value, "detach") else value)  # a loss may still have its graph
