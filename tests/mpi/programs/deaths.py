"""Ranks die in the ways of tests/mpi/deaths.py. Arguments: a folder, and the key of a row, or "one after the other".

Each survivor writes to FOLDER/R, R being its number at the start, what it sees.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np

import pushsum_opt as ps
from pushsum_opt.errors import NonFiniteError

ONE_AFTER_THE_OTHER = [
    ("rank 0", (0,), "killed"),
    ("crashes", (1,), "crashes"),
    ("raises", (2,), "raises"),
    ("memory", (3,), "memory"),
    ("two", (4, 5), "killed"),
    ("last", (6,), "killed"),
]


def die(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "memory":
        raise MemoryError("no room on purpose")
    if how == "library":
        raise NonFiniteError(f"rank {ps.rank()}: on purpose")
    if how == "sys.exit":
        sys.exit()
    if how == "os._exit":
        os._exit(3)
    if how == "host":
        os.kill(os.getppid(), signal.SIGKILL)  # the daemon of MPI
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("out of luck")


def main(folder: Path, what: str) -> None:
    me = ps.rank()

    def say(line: str) -> None:
        with (folder / str(me)).open("a") as file:
            file.write(f"{line}\n")

    on_loss = "stop" if what == "host, stop" else "continue"
    timeout = 10 if what == "os._exit" else 60
    graph = ps.graphs.Complete() if what == "os._exit" else None  # so that all wait for the one that is gone
    ps.PushSum([np.zeros(1)]).close()  # all that takes time, and a first meeting, come before the short deadline
    push_sum = ps.PushSum([np.full(1000, float(me))], graph=graph, on_loss=on_loss, timeout=timeout)
    if what == "one after the other":
        for key, dying, how in ONE_AFTER_THE_OTHER:
            for _ in range(5):
                push_sum.mix()
            ps.average(1.0)
            if me in dying:
                die(how)
            ps.average(1.0)  # all that are left have settled it
            say(f"{key}: {push_sum.members}")
        for _ in range(5):
            push_sum.mix()
    else:
        dies = socket.gethostname() == "another" if what.startswith("host") else me == 1
        for k in range(400):
            if dies and k == 20:
                die(what.partition(",")[0])
            push_sum.mix()
    push_sum.drain()
    push_sum.close()
    say("the end")


main(Path(sys.argv[1]), sys.argv[2])
