"""Environment variables that an MPI library needs to start, with values that work where they are missing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping

__all__ = ["missing_variables"]


def missing_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that Open MPI needs and ``environ`` lacks, each with a value that works here.

    ``HOME``: Open MPI does not start without it, and some containers and batch systems do not set it. ``TMPDIR``: Open
    MPI does not start where this folder exists and cannot be written to.
    """
    found = {}
    if "HOME" not in environ:
        found["HOME"] = _home()
    folder = environ.get("TMPDIR")
    if folder and os.path.exists(folder) and not (os.path.isdir(folder) and _can_be_written(folder)):
        usable = _temporary_folder()
        if usable is not None:
            found["TMPDIR"] = usable
    return found


def _home() -> str:
    """Return this user's home from the list of users, or a temporary folder where there is none."""
    try:
        import pwd

        folder = pwd.getpwuid(os.getuid()).pw_dir
    except (ImportError, KeyError):  # Windows; or a user number without an entry, as containers have
        folder = ""
    return folder if folder and os.path.isdir(folder) else _temporary_folder() or os.getcwd()


def _temporary_folder() -> str | None:
    return next((one for one in ("/tmp", "/var/tmp", tempfile.gettempdir()) if _can_be_written(one)), None)


def _can_be_written(folder: str) -> bool:
    """Try to write: root has permission everywhere, but a file system may be read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
