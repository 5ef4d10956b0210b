"""Names for parts of a user's program, as listeners hear them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..job import ending, world

__all__ = ["span"]


@contextmanager
def span(name: str) -> Iterator[None]:
    """Name a part of the program, such as ``with ps.observe.span("forward"):``. Local.

    All listeners of this rank hear of it: a :class:`Timeline` shows it, and :class:`Metrics` count its seconds. Without
    listeners nothing happens. Spans may lie inside each other.

    Args:
        name: what the timeline shows.
    """
    heard = [member.listeners for member in _process().members]
    for listeners in heard:
        listeners.span_begins(name)
    try:
        yield
    finally:
        for listeners in heard:
            listeners.span_ends(name)


def _process() -> Any:
    """Return what this rank has open; in :func:`pushsum_opt.testing.run` a thread is a rank."""
    own = world.rank_of_this_thread()
    return ending.THIS if own is None else own.process
