"""Waits for mpirun: passes every signal on once, and ends with the same exit codes for every launcher.

Without it the code would depend on the launcher: after Ctrl-C, Open MPI's returns 1, as after any error, and MPICH's 2.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from ..exit_codes import REQUEUE

__all__ = ["Ended", "exit_code", "supervise", "watch"]

_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_OTHERS = tuple(getattr(signal, name) for name in ("SIGQUIT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
_PASSED_ON = (*_ENDING, *_OTHERS)
_LOOK_AGAIN_S = 0.2
"""Between looks whether the command has ended: in a process of several threads another one may get the signal of its
end, and drop it."""
_FROM_THE_KERNEL = 0x80  # si_code SI_KERNEL: typed at the terminal, not sent by a process


@dataclass(frozen=True)
class Ended:
    """How a command has ended."""

    code: int
    """The exit code that the shell should see."""

    asked: bool
    """Whether a signal had asked for the end."""


def supervise(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Start a command as :func:`watch` does; return the exit code that the shell should see."""
    return watch(command, environ).code


def watch(command: Sequence[str], environ: Mapping[str, str]) -> Ended:
    """Start ``command``, pass signals on to it, and wait for its end.

    A key typed at the terminal (Ctrl-C) reaches every process of the foreground group by itself. So at a terminal the
    command shares our group, and such a signal is not passed on: two interrupts make some launchers kill ranks that are
    still cleaning up. Without a terminal the command gets its own group, and every signal is passed on.
    """
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if not hasattr(signal, "sigtimedwait"):
        return _supervise_by_handlers(command, environ, at_terminal)
    # Signals are blocked and then waited for: no handler runs in between, and a signal that comes early is not lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_PASSED_ON, signal.SIGCHLD))
    try:
        group = os.getpgrp() if at_terminal else 0  # 0: one of its own
        child = os.posix_spawn(command[0], list(command), dict(environ), setpgroup=group, setsigmask=before)
        return _wait(child, at_terminal)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(child: int, at_terminal: bool) -> Ended:
    ended_by: int | None = None
    while True:
        received = signal.sigtimedwait((*_PASSED_ON, signal.SIGCHLD), _LOOK_AGAIN_S)
        if received is None or received.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == child:
                return _ended(os.waitstatus_to_exitcode(status), ended_by)
            continue
        if received.si_signo in _ENDING:
            ended_by = received.si_signo
        if not (at_terminal and received.si_code == _FROM_THE_KERNEL):
            os.kill(child, received.si_signo)


def _supervise_by_handlers(command: Sequence[str], environ: Mapping[str, str], at_terminal: bool) -> Ended:
    """As :func:`watch`, without sigtimedwait (macOS, Windows): the source of a signal cannot be told there.

    So at a terminal no interrupt is passed on, as one that was typed reaches the command by itself.
    """
    ended_by: list[int] = []
    child = subprocess.Popen(list(command), env=dict(environ), start_new_session=not at_terminal)

    def take(number: int, frame: FrameType | None) -> None:
        if number in _ENDING:
            ended_by.append(number)
        if not (at_terminal and number == signal.SIGINT) and child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, take) for number in _PASSED_ON}
    try:
        returned = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    return _ended(returned, ended_by[-1] if ended_by else None)


def _ended(returned: int, ended_by: int | None) -> Ended:
    return Ended(exit_code(returned, ended_by), ended_by is not None)


def exit_code(returned: int, ended_by: int | None) -> int:
    """Translate what mpirun returned (negative: the signal that killed it), given the signal that asked it to end.

    A script that has handled the signal returns 0, or 75 for "saved, to be requeued": that code stays. Any other code
    after a signal becomes 128 plus the signal: 130 for an interrupt.
    """
    if ended_by is not None and returned not in (0, REQUEUE):
        return 128 + ended_by
    return returned if returned >= 0 else 128 - returned
