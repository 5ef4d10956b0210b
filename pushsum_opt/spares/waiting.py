"""A spare: it waits until a rank is lost, is told whose place it takes, and later is taken in by the others."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

from . import words

__all__ = ["Invitation", "Spare"]

LONGEST_NAP_S = 20e-3
READY_NAP_S = 1e-3
FINALIZE_S = 10
"""Seconds that MPI has to end after processes have died; whole ones, for alarm()."""


@dataclass(frozen=True)
class Invitation:
    """What the ranks that train tell a spare when they take it in."""

    caller: int
    """The process that has sent it."""

    processes: tuple[int, ...]
    """All that take part from now on, by their places."""

    ranks: tuple[int, ...]
    """Their ranks."""

    name: str
    """Of the communicator that they make."""


class Spare:
    """This process, as a spare.

    Args:
        size: the number of ranks that train.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.comm = MPI.COMM_SELF.Dup()
        """Of this process alone: what it has until it is taken in."""
        self.place = -1
        """The rank whose place it takes; -1: it was not called."""
        self.taken_in = False
        """Whether it is one of those that train."""
        self._caller = -1
        self._ready = False
        self._crew = set(range(size))  # those that train, as far as this one knows
        self._over: set[int] = set()
        self._invitation: Invitation | None = None
        self._answered: Invitation | None = None
        self._go = False

    def wait_until_called(self) -> None:
        """Return once this spare is to take a rank's place.

        Raises:
            SystemExit: the ranks that train have ended, and it is not needed. With code 1: all of them have died.
        """
        with _ignoring_usr1():
            self._wait(lambda: self.place >= 0, LONGEST_NAP_S)

    def wait_until_invited(self) -> Invitation:
        """Say that this spare can be taken in, and return once it is to be.

        Raises:
            SystemExit: as :meth:`wait_until_called`.
        """
        self._ready = True
        self._say_ready(self._caller)
        self._wait(lambda: self._invitation is not self._answered, READY_NAP_S)  # a newer one may be here already
        invitation: Invitation | None = self._invitation
        assert invitation is not None
        return invitation

    def accept(self) -> bool:
        """Answer an invitation; return whether all others come too.

        Raises:
            SystemExit: as :meth:`wait_until_called`.
        """
        invitation = self._invitation
        assert invitation is not None
        self._answered, self._go = invitation, False
        words.send(invitation.caller, words.TO_RANKS, kind="coming", name=invitation.name)
        self._wait(lambda: self._go or self._invitation is not invitation or self._left(invitation), READY_NAP_S)
        return self._go and self._invitation is invitation

    def _left(self, invitation: Invitation) -> bool:
        return invitation.caller in words.dead()

    def is_in(self) -> None:
        """Note that this process is one of those that train from now on."""
        self.taken_in = True

    def _say_ready(self, caller: int) -> None:
        words.send(caller, words.TO_RANKS, kind="ready", place=self.place)

    def _wait(self, done: Any, longest_nap: float) -> None:
        begin = time.monotonic()
        while True:
            for sender, word in words.receive(words.TO_SPARES):
                self._take(sender, word)
            if done():
                return
            self._leave_if_not_needed()
            time.sleep(min(longest_nap, 1e-4 + 0.01 * (time.monotonic() - begin)))

    def _take(self, sender: int, word: words.Word) -> None:
        if word["kind"] == "come":
            if self.place < 0:
                self.place = int(word["place"])
            self._caller = sender
            if self._ready:
                self._say_ready(sender)
        elif word["kind"] == "crew":
            self._crew = set(word["processes"])
        elif word["kind"] == "over":
            self._over.add(sender)
        elif word["kind"] == "invited":
            self._invitation = Invitation(sender, tuple(word["processes"]), tuple(word["ranks"]), word["name"])
        elif word["kind"] == "go" and self._invitation is not None:
            self._go = word["name"] == self._invitation.name

    def _leave_if_not_needed(self) -> None:
        dead = words.dead()
        if not self._crew <= self._over | dead:
            return
        if dead and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(FINALIZE_S)  # MPI_Finalize does not always return after deaths
        if self._crew & self._over:
            raise SystemExit(0)
        me = MPI.COMM_WORLD.Get_rank() - self.size
        print(f"pushsum_opt: spare {me}: all ranks that trained have died, so nobody can give it the state to go on "
              "from. Start again from a checkpoint", file=sys.stderr, flush=True)  # fmt: skip
        raise SystemExit(1)


@contextlib.contextmanager
def _ignoring_usr1() -> Iterator[None]:
    """Inside, SIGUSR1 does not end this process: mpirun passes it on to all, and it is meant for those that train."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "SIGUSR1") or signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
