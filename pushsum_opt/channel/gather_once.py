"""A channel that is opened for one exchange, and closed after it."""

from __future__ import annotations

from typing import Any

from ..transport import TIMEOUT
from ..transport.calls import current_call
from .channel import Channel

__all__ = ["gather_once"]


def gather_once(comm: Any, mine: bytes, what: str, timeout: float = TIMEOUT) -> list[bytes]:
    """Collective. Return every rank's bytes, of the same length, in rank order; no rank leaves before all have them.

    Args:
        what: names the call in messages, where nothing else does.
    """
    channel = Channel.open(comm, timeout=timeout)
    try:
        call = current_call(what)
        rows = channel.gather(mine, call)
        channel.let_everyone_know(call)
        return [row.tobytes() for row in rows]
    finally:
        channel.close()
