"""Who may write which files of a folder in memory."""

from __future__ import annotations

import os
import subprocess

import pytest
from warm.python import warm_python

from pushsum_opt.checkpoint.memory_folder import MemoryFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "memory").mkdir()
    return MemoryFolder(tmp_path / "memory", "0123", tmp_path / "disk")


def test_a_slot_that_was_given_back_is_free_while_a_forked_child_lives(folder):
    """A worker of a DataLoader lives on, and has the lock of its parent open: a second Saver takes the same files."""
    slot, other = folder.take(), folder.take()
    assert (slot.number, other.number) == (0, 1)
    inherited = os.dup(slot._lock)
    slot.release()
    again = folder.take()
    assert again.number == 0
    os.close(inherited)
    again.release()
    other.release()


IN_A_CHILD = """
import os, sys
from pathlib import Path
from pushsum_opt.checkpoint.memory_folder import MemoryFolder

folder = MemoryFolder(Path(sys.argv[1]), "0123", Path(sys.argv[2]))
slot = folder.take()
if os.fork() == 0:
    slot.release()
    os._exit(0)
ended = os.waitstatus_to_exitcode(os.wait()[1])
print(ended, slot.number, folder.take().number)
"""


def test_a_forked_child_does_not_give_back_what_its_parent_holds(tmp_path):
    command = [*warm_python(), "-c", IN_A_CHILD, str(tmp_path), str(tmp_path / "disk")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "0", "1"], done.stderr
