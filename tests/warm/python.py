"""Programs that find torch imported: importing it takes 3 to 4 s of a core, and tests start hundreds of processes."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
MODULES = ("numpy", "torch", "torch._dynamo", "torch.distributed")
LONGEST = 550.0  # seconds that the imports may take: a few, and minutes on a machine that does much else


def warm_python(*more: str) -> list[str]:
    """Return what stands in a command in place of ``[sys.executable]``, before a script or ``-c``.

    Args:
        more: other modules that are imported before the program begins. Not one that looks at the environment then.

    The program is a process of its own as always: with its own arguments, environment, folder, files, signals and exit
    code, under mpirun too. What differs: the modules above are imported before it begins, all such programs share the
    seed of Python's hashes, and the interpreter's own options and ``PYTHON...`` variables, but PYTHONPATH and
    PYTHONUNBUFFERED, do nothing. Where that matters (how a process starts, and the order of sets on several ranks),
    a test starts ``sys.executable``.
    """
    return [sys.executable, "-S", "-E", str(HERE / "start.py"), _server(*more)]


@cache
def _server(*more: str) -> str:
    """Start the server of this process of pytest and return its socket; it ends with this process."""
    folder = tempfile.mkdtemp(prefix="warm-")
    path = str(Path(folder) / "s")
    server = subprocess.Popen(
        [sys.executable, str(HERE / "server.py"), path, *MODULES, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )

    def end() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    deadline = time.monotonic() + LONGEST
    while not Path(path).exists():
        assert server.poll() is None, f"the warm Python ended with {server.returncode} before it was ready"
        assert time.monotonic() < deadline, f"the warm Python imports for longer than {LONGEST:g} s"
        time.sleep(0.01)
    return path
