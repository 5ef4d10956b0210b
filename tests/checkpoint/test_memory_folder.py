"""Who may write which files of a folder in memory."""

from __future__ import annotations

import os

import pytest

from pushsum_opt.checkpoint.memory_folder import MemoryFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "memory").mkdir()
    return MemoryFolder(tmp_path / "memory", "0123", tmp_path / "disk")


def in_child(do):
    """Do something in a forked child; the child ends with exit code 0 if it has worked."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            do()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


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


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_give_back_what_its_parent_holds(folder):
    slot = folder.take()
    in_child(slot.release)
    other = folder.take()
    assert (slot.number, other.number) == (0, 1)
    slot.release()
    other.release()
