"""What is left of a push-sum that could not be made, or that is closed."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest

import pushsum_opt as ps
from pushsum_opt.errors import MismatchError


class Array(np.ndarray):
    """An array that can be referred to weakly."""


@pytest.mark.parametrize("staleness", [0, 1, "unbounded"])
def test_ranks_that_do_not_fit_leave_neither_a_thread_nor_their_tensors(staleness):
    """Such as in a notebook, where the cell is changed and run again."""
    before = set(threading.enumerate())
    left, everyone = [], threading.Barrier(2, timeout=60)

    def rank(comm):
        z = np.zeros(3 + comm.rank).view(Array)
        left.append(weakref.ref(z))
        with pytest.raises(MismatchError, match="the ranks disagree about what they exchange"):
            ps.PushSum([z], staleness=staleness, comm=comm)
        everyone.wait()

    ps.testing.run(2, rank)
    gc.collect()
    new = set(threading.enumerate()) - before
    assert [thread.name for thread in new if thread.name.startswith("pushsum_opt")] == []
    assert [tensor() for tensor in left] == [None, None]


def test_nothing_keeps_tensors_alive_that_a_closed_push_sum_has_exchanged():
    """A program that trains one model after another has room for one."""

    def rank(comm):
        z = np.zeros(3).view(Array)
        with ps.PushSum([z], comm=comm) as push_sum:
            push_sum.mix()
        gone = weakref.ref(z)
        del z, push_sum
        for _ in range(200):  # a collection that another thread runs just now makes ours return at once
            if gone() is not None:
                gc.collect()
                time.sleep(0.01)
        return gone() is None

    assert ps.testing.run(2, rank) == [True, True]
