"""Facts about the machine, read from ``PUSHSUM_*`` environment variables: here, and nowhere else.

Settings of an experiment (graph, staleness, weights) are keyword arguments; what belongs to the machine is a variable,
so that the same script runs unchanged on a laptop and on a cluster.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import ConfigurationError

__all__ = ["Settings", "read"]


@dataclass(frozen=True)
class Settings:
    """Each field is one environment variable, ``PUSHSUM_`` and its name in capitals."""

    stall_seconds: float = 60.0
    """Seconds without progress before a waiting rank says whom it waits for; it repeats after the same time."""

    chunk_bytes: int | None = None
    """Largest piece of a message, in bytes; None: 4 MiB; where the model is on a GPU, 32 MiB or 1/64 of a message.

    Equal on all ranks.
    """

    cuda_aware: str = "auto"
    """Whether MPI is given GPU memory: "1" yes, "0" no (it goes through the host), "auto" what a trial finds best."""

    transport: str = "auto"
    """What carries messages: "mpi", "torch" (torch.distributed), or "auto": as the launcher of the ranks says."""

    nccl: bool = False
    """Whether NCCL moves GPU memory where torch.distributed carries messages; otherwise it goes through the host.

    Equal on all ranks.
    """

    ranks_per_host: int | None = None
    """Take so many consecutive ranks as a host, for ``within_host``; None: find out who shares memory."""

    abort_on_error: bool = True
    """Whether an uncaught exception on one rank ends the whole MPI job, after its traceback was printed."""

    restarts: int = 0
    """How often ``pushsum run --restarts`` has started this job again; it sets this."""

    spares: int = 0
    """How many processes of this job wait until a rank is lost; ``pushsum run --spares`` sets it."""

    progress: str | None = None
    """A folder in which ranks note the round that they saved last; ``pushsum run --restarts`` sets it."""

    timeline: str | None = None
    """A folder in which every rank writes its timeline, for ``pushsum timeline``; set on all ranks, or on none."""

    metrics: str | None = None
    """A folder in which the optimizer of every rank writes metrics, for ``pushsum top`` and ``pushsum report``."""


def read(environ: dict[str, str] | None = None) -> Settings:
    """Read every variable from ``environ`` (default: ``os.environ``).

    Raises:
        ConfigurationError: a variable holds a value that cannot be read; it is named with its value.
    """
    variables = os.environ if environ is None else environ
    return Settings(
        stall_seconds=_number(variables, "PUSHSUM_STALL_SECONDS", Settings.stall_seconds, least=0.01),
        chunk_bytes=_count(variables, "PUSHSUM_CHUNK_BYTES", least=64),
        cuda_aware=_choice(variables, "PUSHSUM_CUDA_AWARE", ("auto", "1", "0")),
        transport=_choice(variables, "PUSHSUM_TRANSPORT", ("auto", "mpi", "torch")),
        nccl=_switch(variables, "PUSHSUM_NCCL", Settings.nccl),
        ranks_per_host=_count(variables, "PUSHSUM_RANKS_PER_HOST", least=1),
        abort_on_error=_switch(variables, "PUSHSUM_ABORT_ON_ERROR", Settings.abort_on_error),
        restarts=_count(variables, "PUSHSUM_RESTARTS", least=0) or 0,
        spares=_count(variables, "PUSHSUM_SPARES", least=0) or 0,
        progress=variables.get("PUSHSUM_PROGRESS") or None,
        timeline=variables.get("PUSHSUM_TIMELINE") or None,
        metrics=variables.get("PUSHSUM_METRICS") or None,
    )


def _number(variables: os._Environ[str] | dict[str, str], name: str, default: float, least: float) -> float:
    text = variables.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value < float("inf"):
        raise ConfigurationError(f"{name}={text!r}: expected a number of at least {least:g} (default {default:g})")
    return value


def _count(variables: os._Environ[str] | dict[str, str], name: str, least: int) -> int | None:
    return int(_number(variables, name, least, least)) if name in variables else None


def _choice(variables: os._Environ[str] | dict[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """Return the variable; the first of ``allowed`` is the default."""
    text = variables.get(name, allowed[0])
    if text not in allowed:
        raise ConfigurationError(f"{name}={text!r}: expected one of {', '.join(allowed)} (default {allowed[0]})")
    return text


def _switch(variables: os._Environ[str] | dict[str, str], name: str, default: bool) -> bool:
    text = variables.get(name)
    if text is None:
        return default
    if text not in ("0", "1"):
        raise ConfigurationError(f"{name}={text!r}: expected 0 or 1 (default {int(default)})")
    return text == "1"
