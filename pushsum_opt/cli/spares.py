"""``pushsum run --spares K``: start more processes than train."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigurationError
from .host_list import RANKS

__all__ = ["VARIABLE", "count_processes", "with_spares"]

VARIABLE = "PUSHSUM_SPARES"


def count_processes(options: Sequence[str]) -> int | None:
    """Return how many processes mpirun's options ask for; None where they do not say it.

    >>> count_processes(["-np", "8"])
    8
    """
    place = _place(options)
    text = "" if place is None else options[place]
    return int(text) if text.isdecimal() else None


def with_spares(options: Sequence[str], spares: int) -> list[str]:
    """Return the options for so many more processes.

    Raises:
        ConfigurationError: they do not say how many ranks train.

    >>> with_spares(["-np", "8", "--tag-output"], 2)
    ['-np', '10', '--tag-output']
    """
    place, count = _place(options), count_processes(options)
    if place is None or count is None:
        raise ConfigurationError(f"--spares {spares}: expected `-np N` with it, the number of ranks that train")
    return [*options[:place], str(count + spares), *options[place + 1 :]]


def _place(options: Sequence[str]) -> int | None:
    """Return where the number of ranks is; :func:`~pushsum_opt.cli.command_line.split` has written it as two words."""
    places = [place + 1 for place, word in enumerate(options[:-1]) if word in RANKS]
    return places[-1] if places else None
