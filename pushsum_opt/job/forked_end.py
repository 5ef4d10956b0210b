"""How a forked child of a rank ends: as any Python process does, except that it does not end MPI.

mpi4py ends MPI in the last step of Python's own end. In a forked child both Open MPI and MPICH wait there for ever, or
end the job. So a child leaves just before that step, when Python has done everything else: exit handlers have run,
files are written and closed. Python does not tell its exit code, so this module finds it out.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from typing import Any, NoReturn

from ..exit_codes import INTERRUPTED
from . import joined

__all__ = ["exit_code", "watch", "watch_exit_codes"]

UNSIGNED_BYTE = 0xFF
LAST = "pushsum_opt_leaves_before_mpi_ends"

_watching = False
_error_before: Any = None  # the exception that was being handled when the child was made
_found: dict[str, int] = {}  # the exit code, and a signal to end by
_code: Any = SystemExit.__dict__["code"]  # what holds the code of a SystemExit
_set_code, _delete_code = _code.__set__, _code.__delete__


def watch() -> None:
    """Make children that are forked from now on end in this way. Idempotent."""
    global _watching
    if not _watching and hasattr(os, "register_at_fork"):
        _watching = True
        os.register_at_fork(after_in_child=_begin)


def _begin() -> None:
    """In a new child: prepare its end."""
    global _error_before
    if not joined.job_runs():
        return
    _error_before = _uncaught()
    if hasattr(sys, LAST):  # a child's child
        return
    watch_exit_codes()
    atexit.register(_note_the_error)
    setattr(sys, LAST, _Leaves())  # what sys holds goes last of all


class _Leaves:
    """Ends the process when it is collected."""

    def __del__(
        self, found: dict[str, int] = _found, end: Any = os._exit, kill: Any = os.kill, pid: Any = os.getpid
    ) -> None:
        # Modules are emptied by now, so the function itself holds all that it uses.
        if "signal" in found:
            kill(pid(), found["signal"])
        end(found.get("code", 0))


# ---------------------------------------------------------------------- which code


def exit_code() -> int:
    """Return the code with which this program ends: of its SystemExit, or 1 for an error that nobody has caught.

    At its end, if watched.
    """
    _note_the_error()
    return _found.get("code", 0)


def watch_exit_codes() -> None:
    """Notice when Python asks a SystemExit for its code, after all frames have ended. Idempotent.

    Python has no hook for this. Watching calls of ``sys.exit()`` would not do: such an exit may be caught, and ``raise
    SystemExit`` makes no such call.
    """
    import ctypes  # imported here, so that importing the package stays cheap

    names = gc.get_referents(SystemExit.__dict__)[0]
    if isinstance(names, dict) and names.get("code") is _code:
        names["code"] = property(_asked_for_code, _set_code, _delete_code)
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(SystemExit))
    if sys.version_info < (3, 12):  # there sys.exit() makes no SystemExit that could be asked, unless it is caught
        plain = sys.exit
        for module in tuple(sys.modules.values()):  # sys, and who has imported it from there
            if getattr(module, "__dict__", {}).get("exit") is plain:
                module.exit = _exit  # type: ignore[attr-defined]


def _exit(status: Any = None, /) -> NoReturn:
    raise SystemExit(status)


def _asked_for_code(error: SystemExit) -> Any:
    value = _code.__get__(error)
    if sys._getframe().f_back is None:
        _found["code"] = _as_exit_code(value)
    return value


def _as_exit_code(value: Any) -> int:
    if value is None:
        return 0
    if not isinstance(value, int):
        return 1  # Python prints it
    fits = -(1 << 63) <= value < 1 << 63
    return value & UNSIGNED_BYTE if fits else UNSIGNED_BYTE


def _uncaught() -> Any:
    """Return the last exception that reached the end of the program, or was shown at a prompt."""
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)


def _note_the_error() -> None:
    error = _uncaught()
    if "code" in _found or error is None or error is _error_before:
        return
    _found["code"] = 1
    if isinstance(error, KeyboardInterrupt):  # Python ends by the signal itself, so that a shell can tell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _found.update(code=INTERRUPTED, signal=int(signal.SIGINT))
