"""Where the numbers of a rank can go: a file of JSON lines, TensorBoard, and Prometheus."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ...errors import ConfigurationError
from ...installed import install_command
from ..bounded_file import BoundedFile, file_name
from .collected import Numbers

__all__ = ["JsonLines", "Prometheus", "Sink", "TensorBoard"]

LIMIT_BYTES = 256 << 20


class Sink(Protocol):
    """Takes one row after the other."""

    def take(self, numbers: Numbers) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Writes a line of JSON for each row, at once.

    A file begins with ``{"about": ...}``, which says what ran. ``{"loss": ...}`` follows each loss of ranks, once more
    when spares have taken their places, and ``{"ended": time}`` is the last line of a rank that came to its end.

    Args:
        about: returns facts of :func:`~.about.describe`.
        losses: returns the losses so far: :class:`~pushsum_opt.Loss`.
        now: returns the seconds since 1970.
    """

    def __init__(
        self,
        directory: Path,
        about: Callable[[], dict[str, Any]],
        losses: Callable[[], Sequence[Any]] = tuple,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory, self._about, self._losses, self._now = directory, about, losses, now
        self._file: BoundedFile | None = None
        self._lost = list(losses())

    def begin(self) -> None:
        """Make the file. The first row does it too: a spare does not know before which run it takes part in."""
        about = self._about()
        rank, head = about["rank"], json.dumps({"about": about}) + "\n"
        path = self._directory / file_name("metrics", about["run"], rank)
        if path.exists():  # the rank whose place this spare takes has written it
            path = path.with_name(f"{path.stem}-{about['pid']}{path.suffix}")
        self._file = BoundedFile(path, LIMIT_BYTES, rank, lambda: head, "file of metrics")

    def take(self, numbers: Numbers) -> None:
        if self._file is None:
            self.begin()
        losses = [loss for loss in self._losses() if loss not in self._lost]
        self._lost += losses
        self._write(
            *({"loss": {"time": self._now(), **asdict(loss)}} for loss in losses),
            {"time": self._now(), **asdict(numbers)},
        )

    def close(self) -> None:
        if self._file is not None:
            self._write({"ended": self._now()})
            self._file.close()

    def _write(self, *lines: dict[str, Any]) -> None:
        assert self._file is not None
        for line in lines:
            self._file.append(json.dumps(line) + "\n")
        self._file.flush()


class TensorBoard:
    """Writes scalars into a folder of its own for each rank, which TensorBoard shows as a run."""

    def __init__(self, directory: Path, rank: int) -> None:
        _needed("tensorboard", "tensorboard", rank)
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(str(directory / f"rank-{rank:05d}"))

    def take(self, numbers: Numbers) -> None:
        for name, value in numbers.flat().items():
            tag = name if name in numbers.logged else f"pushsum/{name}"
            self._writer.add_scalar(tag, value, global_step=numbers.round)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Prometheus:
    """Answers on a port with the numbers of the last row, in Prometheus's text format."""

    def __init__(self, port: int, address: str, rank: int) -> None:
        client = _needed("prometheus_client", "prometheus", rank)
        self._core = import_module("prometheus_client.core")
        self._numbers: Numbers | None = None
        registry = client.CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = client.start_http_server(port + rank, addr=address, registry=registry)
        except (OSError, OverflowError) as error:  # the second: above 65535
            raise ConfigurationError(
                f"rank {rank}: prometheus={port}: port {port + rank} of {address} cannot be opened: {error}. Each rank "
                "has the port prometheus + rank: give a number from which on as many ports are free as there are ranks"
            ) from error

    def take(self, numbers: Numbers) -> None:
        self._numbers = Numbers(**vars(numbers))

    def collect(self) -> Iterator[Any]:
        """Return the numbers; prometheus_client calls this."""
        numbers = self._numbers
        if numbers is None:
            return
        for name, value in vars(numbers).items():
            if name == "rank":
                continue
            kind = self._core.CounterMetricFamily if name.endswith("_total") else self._core.GaugeMetricFamily
            label = LABELS.get(name)
            family = kind(f"pushsum_{name}", HELP[name], labels=["rank"] if label is None else ["rank", label])
            for part, one in (value if label is not None else {"": value}).items():
                family.add_metric([str(numbers.rank), part] if label is not None else [str(numbers.rank)], one)
            yield family

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


LABELS = {
    "step_seconds": "statistic",
    "round_wait_seconds": "statistic",
    "message_age": "statistic",
    "wait_seconds_total": "peer",
    "moved": "statistic",
    "span_seconds_total": "span",
    "logged": "name",
    "means": "name",
}
HELP = {
    "round": "The last round that was completed.",
    "push_weight": "The push weight of this rank.",
    "steps_total": "Rounds completed.",
    "sent_bytes_total": "Bytes of messages posted.",
    "chunks_skipped_total": "Parts of messages that were not finite, and not merged.",
    "blocks_missed_total": "Blocks of messages in eight bits that were not merged.",
    "round_seconds_total": "Time in rounds: giving, waiting, merging.",
    "local_step_seconds_total": "Time in steps of the wrapped optimizer.",
    "step_seconds": "Time from the end of one round to that of the next.",
    "round_wait_seconds": "Time that a round waits, of rounds with a message to merge.",
    "wait_seconds_total": "Time waited, by the rank waited for.",
    "message_age": "Age of merged messages, in rounds.",
    "moved": "How far the model of this rank has moved in the last rounds, and in how many.",
    "span_seconds_total": "Time in the parts of the program that it names.",
    "logged": "What the program logs: means since the row before.",
    "means": "Means over ranks, some rounds old.",
}


def _needed(module: str, argument: str, rank: int) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"rank {rank}: Metrics({argument}=...) needs a package that cannot be imported ({error}): "
            f"`{install_command('observe')}`"
        ) from error
