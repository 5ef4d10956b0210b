"""One rank among the others: when it fails they are told at once, and it leaves together with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from .errors import ClosedError
from .hosts import Hosts
from .transport import Notice, Transport
from .transport.waiting import Waiter

__all__ = ["Membership"]


class Membership:
    """Whether a rank still takes part, and what it tells its partners when it no longer does.

    Args:
        partners: every rank that this one ever gives to or takes from.
        hosts: the other ranks of its host, where they are one participant; they are told too.

    ``round``, below, is always the number of rounds that this rank has completed; in :meth:`failing_together`, when
    the context begins.
    """

    def __init__(
        self, transport: Transport, waiter: Waiter, partners: Collection[int], hosts: Hosts | None
    ) -> None:
        self._transport = transport
        self._waiter = waiter
        self._partners = frozenset(partners)
        self._hosts = hosts
        self.failure: str | None = None
        """The error that ended the exchange, if one has."""
        self.closed = False

    @contextmanager
    def failing_together(self, round: int) -> Iterator[None]:
        """Tell the other ranks when this one fails, and refuse to go on afterwards."""
        try:
            yield
        except BaseException as error:
            self.fail(error, round)
            raise

    def fail(self, error: BaseException, round: int) -> None:
        if self.failure is not None:
            return
        self.failure = f"{type(error).__name__}: {error}"
        notice = Notice(self._transport.rank, True, round, self._transport.collectives, self.failure)
        with contextlib.suppress(Exception):  # at best effort: the error at hand is the one to raise
            self._transport.tell(self._partners, notice)
            self._transport.poll(0.0)
            if self._hosts is not None:
                self._hosts.tell(notice)

    def refuse_if_over(self, round: int) -> None:
        """Raise ClosedError after the end, whether in peace or by an error."""
        rank = self._transport.rank
        if self.closed:
            raise ClosedError(f"rank {rank}: already closed. Make a new one to exchange again")
        if self.failure is not None:
            raise ClosedError(
                f"rank {rank}: an earlier error ended the exchange in round {round} ({self.failure}). "
                "The ranks no longer agree on what was merged: restart from a checkpoint"
            )

    def leave(self, round: int, bring_home: Callable[[], None]) -> None:
        """Collective. Part from the others in peace.

        Args:
            bring_home: merges every message in flight, once the others know that this rank gives no more.
        """
        # First say so: from now on nobody waits for this rank, or gives to it.
        mine = Notice(self._transport.rank, failed=False, rounds=round, collectives=self._transport.collectives)
        self._transport.tell(self._partners, mine)
        self._waiter.closing = True
        bring_home()
        self._waiter.wait((self._transport.barrier("everyone to close"),), round)
        # Each partner has told us as we have told it: take it in, so that nothing is left on the wire.
        while not self._partners <= self._waiter.finished.keys():
            self._transport.poll(1.0)
            self._waiter.hear()
        if self._hosts is not None:
            self._hosts.tell(mine)
            self._hosts.leave(round)
