"""Every way in which a forked child can end, without torch: python forked.py DIRECTORY."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
from sys import exit

own = os.getpid()
atexit.register(lambda: ended_in_a_child())  # before the library's own handlers: it is called after them

import numpy as np  # noqa: E402

import pushsum_opt as ps  # noqa: E402


def end_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def reports_twice():
    """A child of a child; the code of the second says what that of the first was."""
    child = os.fork()
    if child == 0:
        raise SystemExit(6)
    sys.exit(end_of(child) + 1)


def caught():
    with contextlib.suppress(SystemExit):
        sys.exit(3)
    with contextlib.suppress(SystemExit):
        raise SystemExit(4)
    try:
        raise SystemExit(5)
    except SystemExit as error:
        assert error.code == 5


def raises(error):
    raise error


def average():
    try:
        ps.average(1.0)
    except ps.errors.LaunchError as error:
        assert "was made by a fork of rank" in str(error)
        sys.exit(8)


def keeps(file):
    open_files.append(open(file, "w"))  # noqa: SIM115  (Python closes it at the end)
    open_files[0].write("kept")


open_files = []

# How a child ends, and what plain Python makes of it.
CHILDREN = (
    (lambda: None, 0),
    (lambda: sys.exit(0), 0),
    (lambda: sys.exit(3), 3),
    (lambda: sys.exit("a text"), 1),
    (lambda: sys.exit(), 0),
    (lambda: sys.exit(True), 1),
    (lambda: sys.exit(-1), 255),
    (lambda: sys.exit(1 << 70), 255),
    (lambda: exit(5), 5),
    (lambda: raises(SystemExit), 0),
    (lambda: raises(SystemExit(7)), 7),
    (lambda: raises(RuntimeError("only in the child")), 1),
    (lambda: raises(KeyboardInterrupt), -signal.SIGINT),
    (lambda: os._exit(4), 4),
    (lambda: os.kill(os.getpid(), signal.SIGTERM), -signal.SIGTERM),
    (caught, 0),
    (reports_twice, 7),
    (average, 8),
)


def forks(directory):
    core = ps.PushSum([np.zeros(3)], staleness=1, timeout=60.0)
    core.mix()
    log = f"{directory}/{place[0]}"
    for index, (end, wanted) in enumerate((*CHILDREN, (lambda: keeps(f"{log} kept"), 0))):
        child = os.fork()
        if child == 0:
            end()
            return False
        assert end_of(child) == wanted, f"child {index}: {wanted}"
    core.mix()
    with open(log) as file, open(f"{log} kept") as other:
        # Signals and os._exit() call no exit handlers.
        assert (file.read(), other.read()) == ("ended " * (len(CHILDREN) + 2 - 2), "kept")
    context = multiprocessing.get_context("fork")
    for end, wanted in (lambda: None, 0), (lambda: sys.exit(3), 3), (lambda: raises(SystemExit("a text")), 1):
        process = context.Process(target=end)
        process.start()
        process.join()
        assert process.exitcode == wanted
    core.mix()
    core.close()
    return True


def ended_in_a_child():
    if os.getpid() != own:
        with open(f"{sys.argv[1]}/{place[0]}", "a") as file:
            file.write("ended ")


place = ps.rank(), ps.size()
if forks(sys.argv[1]):  # a child has nothing to say
    print(f"rank {place[0]} of {place[1]}: ok", flush=True)
