"""How things end: what is dropped, replaced, interrupted or forked, on ranks of one process."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from support.ranks import on_ranks
from warm.python import warm_python

import pushsum_opt as ps
from pushsum_opt import testing
from pushsum_opt.errors import ClosedError


def wrap(model, comm, **more):
    return ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, **more)


def collect_until(gone):
    """Have the collector run until something is gone: one that another thread runs just now makes ours do nothing."""
    for _ in range(200):
        if gone():
            return
        gc.collect()
        time.sleep(0.01)


@pytest.mark.parametrize("staleness", [0, 1, "unbounded"])
def test_optimizer_dropped_on_every_rank_is_closed_when_the_next_one_is_made(staleness):
    def run(comm):
        core = wrap(torch.nn.Linear(2, 1), comm, staleness=staleness).push_sum
        collect_until(lambda: core.member.owner.is_gone)
        before = core.closed
        with wrap(torch.nn.Linear(2, 1), comm):
            return before, core.closed

    assert testing.run(2, run) == [(False, True)] * 2


def test_optimizer_dropped_on_one_rank_only_stays_open_on_all():
    def run(comm):
        kept = wrap(torch.nn.Linear(2, 1), comm)
        core = kept.push_sum
        if comm.rank == 0:
            del kept
            collect_until(lambda: core.member.owner.is_gone)
        with wrap(torch.nn.Linear(2, 1), comm):
            return core.member.owner.is_gone, core.closed

    assert testing.run(2, run) == [(True, False), (False, False)]


@pytest.mark.parametrize("staleness", [0, 2])
@on_ranks(2)
def test_new_optimizer_over_the_same_parameters_takes_the_olds_place_and_leaves_their_values(comm, staleness):
    model = torch.nn.Linear(2, 1)
    old = wrap(model, comm, staleness=staleness)
    for _ in range(3):
        model.weight.grad = torch.full_like(model.weight, float(comm.rank))
        old.step()
    with torch.no_grad():
        model.weight.fill_(7.0)  # as load_state_dict does; nothing in flight may be merged into it
    new = wrap(model, comm, staleness=staleness)
    assert torch.equal(model.weight, torch.full_like(model.weight, 7.0))
    with pytest.raises(ClosedError, match="another optimizer was made over the same parameters"):
        old.step()
    new.step()
    new.close()


@on_ranks(2)
def test_two_optimizers_that_share_some_parameters_both_go_on(comm):
    shared, one, two = (torch.nn.Linear(2, 2) for _ in range(3))
    first = wrap(torch.nn.Sequential(shared, one), comm)
    second = wrap(torch.nn.Sequential(shared, two), comm)
    first.step()
    second.step()


def test_taking_the_place_of_an_older_optimizer_on_one_rank_only_is_the_same_error_on_all():
    def run(comm):
        model = torch.nn.Linear(2, 1)
        old = wrap(model, comm)
        wrap(model if comm.rank == 0 else torch.nn.Linear(2, 1), comm)
        old.close()

    with pytest.raises(testing.RankErrors, match="Wrap the same model on every rank") as caught:
        testing.run(2, run)
    assert {type(error) for error in caught.value.errors.values()} == {ps.errors.MismatchError}


def test_average_has_the_weights_of_an_optimizer_that_only_some_ranks_have_dropped():
    def run(comm):
        kept = wrap(torch.nn.Linear(2, 1), comm, data_weight=1.0 + 3.0 * comm.rank)
        core = kept.push_sum
        if comm.rank == 0:
            del kept
            collect_until(lambda: core.member.owner.is_gone)
        return ps.average(float(comm.rank), comm=comm)

    assert testing.run(2, run) == [pytest.approx(0.8)] * 2


def test_saver_and_scheduler_do_not_keep_a_dropped_optimizer_alive(tmp_path):
    def run(comm):
        optimizer = wrap(torch.nn.Linear(2, 1), comm)
        core, gone = optimizer.push_sum, weakref.ref(optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        saver = ps.checkpoint.Saver(tmp_path, optimizer, scheduler=scheduler, signals=())
        optimizer.step()
        saver.after_step()
        del optimizer, scheduler, saver
        collect_until(lambda: gone() is None)
        with wrap(torch.nn.Linear(2, 1), comm):
            return gone() is None, core.closed

    assert testing.run(2, run) == [(True, True)] * 2


def test_hundred_optimizers_in_a_loop_leave_neither_threads_nor_memory():
    def run(comm):
        most = 0
        for _ in range(100):
            wrap(torch.nn.Linear(2, 1), comm, staleness=1).step()
            most = max(most, len(comm.process.members))
        return most < 20

    before = set(threading.enumerate())
    assert testing.run(2, run) == [True, True]
    assert set(threading.enumerate()) <= before


def test_communicators_of_closed_and_of_dropped_optimizers_are_freed():
    """MPICH has 2,040 of them."""
    from mpi4py import MPI

    from pushsum_opt.transport.mpi import transport

    before = len(transport._alive)
    for _ in range(40):
        wrap(torch.nn.Linear(2, 1), MPI.COMM_SELF)
        assert len(transport._alive) - before <= 17  # the collector is asked from 16 on
        wrap(torch.nn.Linear(2, 1), MPI.COMM_SELF).close()
    gc.collect()
    wrap(torch.nn.Linear(2, 1), MPI.COMM_SELF).close()
    assert len(transport._alive) == before


# ---------------------------------------------------------------------- the end of testing.run

FOREVER = """
import os, signal, threading, time, torch, pushsum_opt as ps
steps = [0, 0]
def forever(comm):
    p = torch.nn.Parameter(torch.ones(3))
    o = ps.PushSumOptimizer(torch.optim.SGD([p], lr=0.1), comm=comm, staleness=1)
    while True:
        steps[comm.rank] += 1
        if comm.rank != {idle}: o.step()
        if sum(steps) > 20 and comm.rank == {sender} and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
sent = []
try: ps.testing.run(2, forever)
except KeyboardInterrupt: print("interrupted")
then = list(steps); time.sleep(0.3)
assert steps == then, "a rank went on"
assert threading.active_count() == 1, threading.enumerate()
print(ps.testing.run(2, lambda comm: ps.average(float(comm.rank), comm=comm)))
"""


@pytest.mark.parametrize("idle", [None, 0, 1])
def test_ctrl_c_stops_every_rank_also_one_that_never_calls_the_library_and_the_kernel_goes_on(idle):
    sender = 1 if idle is None else idle  # the other one may wait for a rank that makes no round
    code = FOREVER.replace("{idle}", str(idle)).replace("{sender}", str(sender))
    done = subprocess.run([*warm_python(), "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.stdout.split("\n")[:2], done.returncode) == (["interrupted", "[0.5, 0.5]"], 0), done.stderr


def test_run_that_takes_too_long_leaves_no_rank_behind():
    def forever(comm):
        with ps.PushSum([np.zeros(3)], comm=comm) as push_sum:
            while True:
                push_sum.mix()

    before = set(threading.enumerate())
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] of 2 did not end within 0.2 s"):
        testing.run(2, forever, timeout=0.2)
    assert set(threading.enumerate()) <= before


# ---------------------------------------------------------------------- an interrupt in the middle


def interrupted_sum(core, when):
    """Have the ``when``-th sum over ranks interrupted, as by Ctrl-C."""
    plain, calls = core.transport.sum, []

    def begin(values, what):
        calls.append(what)
        if len(calls) == when:
            raise KeyboardInterrupt
        return plain(values, what)

    core.transport.sum = begin


@pytest.mark.parametrize("call", ["average", "averaged"])
@on_ranks(1)
def test_one_rank_alone_goes_on_after_an_interrupt(comm, call):
    optimizer = wrap(torch.nn.Linear(2, 1), comm)
    before = [p.clone() for p in optimizer.model.parameters()]
    interrupted_sum(optimizer.push_sum, 2)
    with pytest.raises(KeyboardInterrupt):
        if call == "average":
            optimizer.push_sum.average()
        else:
            optimizer.averaged().__enter__()
    assert all(map(torch.equal, before, optimizer.model.parameters()))
    optimizer.step()
    with optimizer.averaged():
        pass
    optimizer.close()


@on_ranks(2)
def test_interrupt_on_one_of_several_ranks_is_named_as_the_cause_and_its_tensors_are_whole(comm):
    optimizer = wrap(torch.nn.Linear(2, 1), comm, timeout=20.0)
    before = [p.clone() for p in optimizer.model.parameters()]
    if comm.rank == 0:
        interrupted_sum(optimizer.push_sum, 2)
    try:
        with optimizer.averaged():
            pass
    except KeyboardInterrupt:
        pass
    except ps.errors.PeerFailed as error:
        assert "interrupted, by Ctrl-C or the stop button of a notebook" in str(error)
    assert all(map(torch.equal, before, optimizer.model.parameters()))
    if comm.rank == 0:
        with pytest.raises(ClosedError, match="an interrupt ended the exchange in round 0"):
            optimizer.step()
    again = wrap(optimizer.model, comm)  # as the error says
    again.step()
    again.close()


# ---------------------------------------------------------------------- a forked child


IN_A_CHILD = """
import os
import torch
import pushsum_opt as ps
from pushsum_opt import testing

def run(comm):
    model = torch.nn.Linear(2, 1)
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, staleness=1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            optimizer.step()
        except ps.errors.ClosedError as error:
            optimizer.close()
            code = 0 if "made by a fork of the rank's own process" in str(error) else 2
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    optimizer.step()
    optimizer.close()
    return code

print(testing.run(1, run))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_call_in_a_forked_child_names_the_fork_and_close_does_nothing():
    done = subprocess.run([*warm_python(), "-c", IN_A_CHILD], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["[0]"], done.stderr
