"""Shared by all tests: the oracle is importable, and a test that hangs says where."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _say_where_it_hangs():
    """Print every thread's stack and stop when one test takes longer than any may."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
