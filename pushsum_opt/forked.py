"""How a child ends that a rank has made by a fork: by itself, with its own exit code, and without MPI.

It is told from the import of the package on: a program may start MPI, and fork, before it makes its first call here.
"""

from __future__ import annotations

import builtins
import os
import sys
from types import TracebackType
from typing import Any, NoReturn

from . import world

__all__ = ["INTERRUPTED", "leave"]

INTERRUPTED = 130

_code = 0


def _note_the_code() -> None:
    """In a child: remember the code that it exits with, which :func:`leave` could not find out otherwise.

    Seen are ``sys.exit()``, ``exit()``, ``quit()`` and uncaught errors; a bare ``raise SystemExit(n)`` counts as 0.
    """
    if not world.is_forked():
        return
    go, show = sys.exit, sys.excepthook

    def exit_with(status: Any = None, /) -> NoReturn:
        global _code
        _code = status if isinstance(status, int) else int(status is not None)
        go(status)

    def show_and_fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        global _code
        _code = INTERRUPTED if issubclass(kind, KeyboardInterrupt) else 1
        show(kind, error, trace)

    sys.exit = exit_with
    sys.excepthook = show_and_fail
    for name in {"exit", "quit"} & vars(builtins).keys():
        setattr(builtins, name, exit_with)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_the_code)


def leave() -> None:
    """End a child here, where Python has done its part: mpi4py would go on to MPI_Finalize, which is for ranks only.

    Both Open MPI and MPICH wait for ever there, or end the job. Does nothing in a rank itself.
    """
    if not world.is_forked() or not world.mpi_runs():
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(_code & 0xFF)
