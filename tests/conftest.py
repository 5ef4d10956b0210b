"""Shared by all tests: the oracle is importable, and a test that hangs says where."""

from __future__ import annotations

import faulthandler
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test is timed: a busy machine is slow, not wrong.
hypothesis.settings.register_profile(
    "untimed",
    parent=hypothesis.settings.default,  # under CI another one than by hand
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("untimed")

START_PROGRAMS = ("tests/examples/", "tests/mpi/", "tests/docs/")
ANYWHERE = 2


@pytest.fixture(autouse=True)
def _say_where_it_hangs():
    """Print every thread's stack and stop when one test takes longer than any may."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Say what xdist may send to any of its processes, and in which order.

    Tests of a file stay in one process, as they share what is slow to start, but for slow ones that start no programs.
    Files that start programs come first, and what may go anywhere last, so that all processes end at the same time.
    """
    order = {item: _place(item) for item in items}
    for item, (place, file) in order.items():
        if place != ANYWHERE:
            item.add_marker(pytest.mark.xdist_group(file))
    items.sort(key=lambda item: order[item][0])


def _place(item):
    file = item.path.relative_to(item.config.rootpath).as_posix()
    if file.startswith(START_PROGRAMS):
        return 0, file
    return (ANYWHERE if item.get_closest_marker("slow") else 1), file
