"""Programs that find torch imported: importing it takes 3 to 4 s of a core, and tests start hundreds of processes."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
MODULES = ("numpy", "torch", "torch._dynamo", "torch.distributed")
FOR_EXAMPLES = ("sklearn.datasets", "torchmetrics")
"""What the examples import beside torch."""
LONGEST_S = 550.0
"""That the imports may take: a few seconds, and minutes on a machine that does much else."""
SHARED = "WARM_PYTHON"
"""The variable that tells the processes of one session of pytest the folder of their servers."""


def warm_python(*more: str) -> list[str]:
    """Return what stands in a command in place of ``[sys.executable]``, before a script or ``-c``.

    Args:
        more: other modules that are imported before the program begins. Not one that looks at the environment then.

    The program is a process of its own as always: with its own arguments, environment, folder, files, signals and exit
    code, under mpirun too, and on the host that its namespaces name. What differs: the modules above are imported
    before it begins, and are not taken down when it ends; its parent is another process (the variable WARM_PARENT names
    the one that started it); all such programs share the seed of Python's hashes, and the interpreter's own options and
    ``PYTHON...`` variables, but PYTHONPATH and PYTHONUNBUFFERED, do nothing. Where that matters (how a process starts,
    and the order of sets on several ranks), a test starts ``sys.executable``.
    """
    return [sys.executable, "-S", "-E", str(HERE / "start.py"), _server(*more)]


def share() -> None:
    """Start a server for this process and those that it starts, and wait until it is ready.

    So torch is imported once for all of them; and where its files are not compiled yet, one process compiles them.
    """
    os.environ[SHARED] = str(Path(_server()).parent)


@cache
def _server(*more: str) -> str:
    """Return the socket of a server that has imported some modules; it ends with the session."""
    if more:
        return _another(_server(), more)
    if SHARED in os.environ:
        return str(Path(os.environ[SHARED]) / "s")
    folder = tempfile.mkdtemp(prefix="warm-")
    path = str(Path(folder) / "s")
    server = subprocess.Popen(
        [sys.executable, str(HERE / "server.py"), path, *MODULES],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )

    def end() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    _wait_for(path, lambda: server.poll() is not None)
    return path


def _another(path: str, modules: tuple[str, ...]) -> str:
    """Return the socket of a server that one with fewer modules has forked itself into; one process asks for it."""
    another = f"{path}{zlib.crc32(repr(modules).encode())}"  # short, as the names of sockets have to be
    with contextlib.suppress(FileExistsError):
        os.close(os.open(f"{another}.asked", os.O_CREAT | os.O_EXCL))
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            text = json.dumps({"serve": another, "modules": modules}).encode()
            socket.send_fds(server, [len(text).to_bytes(4, "big")], [])
            server.sendall(text)
    _wait_for(another, lambda: not Path(path).exists())
    return another


def _wait_for(path: str, ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not Path(path).exists():
        assert not ended(), "the warm Python ended before it was ready"
        assert time.monotonic() < deadline, f"the warm Python imports for longer than {LONGEST_S:g} s"
        time.sleep(0.01)
