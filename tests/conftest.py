"""Shared by all tests: the oracle is importable, and a test that hangs says where."""

from __future__ import annotations

import faulthandler
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from warm.python import share

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


def pytest_configure(config):
    """Before several processes run the tests: one imports torch for the programs of them all."""
    if getattr(config.option, "numprocesses", None) and not config.option.collectonly:
        share()


START_PROGRAMS = ("tests/examples/", "tests/mpi/", "tests/docs/", "tests/torchrun/", "tests/test_ending.py")


@pytest.fixture(autouse=True)
def _say_where_it_hangs():
    """Print every thread's stack and stop when one test takes longer than any may."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def pytest_collection_modifyitems(items):
    """Have files that start programs come first: they are few and take long, and no core shall be idle at the end."""
    items.sort(key=lambda item: not item.path.relative_to(item.config.rootpath).as_posix().startswith(START_PROGRAMS))
