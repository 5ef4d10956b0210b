"""Making a communicator of our own: all ranks wait for each other, with a deadline and stall lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..clock import Clock, monotonic
from ..errors import MismatchError
from ..log import log
from .base import Notice, Ticket, Transport
from .calls import current_call
from .naps import nap
from .roll_call import Progress
from .waiting import Report, Waiter

__all__ = ["TIMEOUT", "Forming", "LogStalls", "compare_calls", "until_all_come"]

TIMEOUT = 1800.0
"""Seconds that ranks have to come to a call that makes a channel, where the call has no ``timeout``."""
CALL_BYTES = 64


@dataclass
class Forming:
    """A communicator that is being made: what a :class:`Waiter` needs to know of it."""

    rank: int
    progress: Progress | None
    done: Callable[[], bool]
    clock: Clock = monotonic
    eager_s: float = 0.0
    """For so long it looks again at once, and takes no nap."""

    def job_rank(self, rank: int | None = None) -> int:
        return self.rank if rank is None else rank

    def poll(self, seconds: float) -> bool:
        begin = time.monotonic()
        while not self.done():
            waited = time.monotonic() - begin
            if waited >= seconds:
                return False
            if waited < self.eager_s:
                time.sleep(0)  # other ranks may share this core
            else:
                nap(waited)
        return True

    def notices(self) -> list[Notice]:
        return []


class LogStalls:
    """Reports stalls to the logger: no channel has listeners before it is there."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def wait_begins(self, call: str, peer: int | None, round: int) -> None: ...

    def wait_ends(self, call: str, peer: int | None, round: int, seconds: float) -> None: ...

    def stalled(self, seconds: float, what: str) -> None:
        log.warning(
            "rank %d has waited %.1f s for %s. If it stays so: is the call made on some ranks only?",
            self._rank,
            seconds,
            what,
        )


def until_all_come(forming: Forming, timeout: float, report: Report, number: int = 0) -> None:
    """Wait until a communicator is made.

    Args:
        number: which one it is that these ranks make.

    Raises:
        PeerTimeout: not every rank came within ``timeout`` seconds.
        PeerFinished: a rank has ended its program.
        MismatchError: a rank waits for this one in another call.
    """
    ticket = Ticket(current_call("making a channel"), None, None, collective=number)
    waiter = Waiter(forming, report, timeout)

    def left() -> Iterable[Any]:
        return () if forming.done() else (ticket,)

    waiter.wait_while(lambda: list(left()), -1)


def compare_calls(transport: Transport, timeout: float, report: Report) -> None:
    """Collective, the first on every channel. Make sure that all ranks made it in the same call.

    Raises:
        MismatchError: the same on every rank.
    """
    call = current_call("making a channel")
    ticket, rows = transport.gather(call.encode()[:CALL_BYTES].ljust(CALL_BYTES, b"\0"), call)
    Waiter(transport, report, timeout).wait((ticket,), -1)
    calls = [row.tobytes().rstrip(b"\0").decode("utf-8", "replace") for row in rows]
    other = next((rank for rank, one in enumerate(calls) if one != calls[transport.rank]), None)
    if other is not None:
        raise MismatchError(
            f"rank {transport.job_rank()} calls {calls[transport.rank]} while rank {transport.job_rank(other)} calls "
            f"{calls[other]}. All ranks must make the same collective calls in the same order"
        )
