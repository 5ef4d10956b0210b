"""A command at a terminal of its own, as a person starts it."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class AtTerminal:
    """Run a command as the leader of a session, in the foreground of a new terminal. All it shows is read at once.

    ``pty.fork()`` is not used, because it forks the test's process. Where another thread holds a lock at that moment,
    the child has the lock but not the thread, and may wait for ever. Here a new Python takes the terminal, and becomes
    the command.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._seen = b""
        self._more = threading.Condition()
        self._shown = False
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", TAKE_TERMINAL, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # when the other side is closed
            while piece := os.read(self._ours, 4096):
                with self._more:
                    self._seen += piece
                    self._more.notify_all()
        with self._more:
            self._shown = True
            self._more.notify_all()

    @property
    def pid(self) -> int:
        """The command's process id."""
        return self._process.pid

    def seen(self) -> str:
        """What the terminal has shown so far."""
        with self._more:
            return self._seen.decode(errors="replace")

    def wait_for(self, word: str, timeout: float) -> None:
        """Wait until the terminal has shown it."""
        with self._more:
            self._more.wait_for(lambda: word.encode() in self._seen or self._shown, timeout)
        assert word in self.seen(), f"the terminal shows no {word!r}:\n{self.seen()}"

    def type(self, keys: bytes) -> None:
        """Type keys: b"\\x03" is Ctrl-C."""
        os.write(self._ours, keys)

    def wait(self, timeout: float) -> int:
        """Return the command's exit code, when the terminal has shown all."""
        code = self._process.wait(timeout)
        self._reader.join(timeout)
        return code

    def __enter__(self) -> AtTerminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:  # after a failure
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._ours)  # whoever is left in its session is told by SIGHUP
