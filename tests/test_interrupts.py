"""An interrupt at any point of what ranks do together: tensors are whole, all ranks end alike, and nothing waits."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import pushsum_opt as ps
from pushsum_opt import testing
from pushsum_opt.collectives import over_push_sum
from pushsum_opt.errors import CheckpointError, ClosedError, PeerFailed, PeerFinished
from pushsum_opt.interrupts import held_back
from pushsum_opt.push_sum import closing, rounds
from pushsum_opt.transport import waiting
from pushsum_opt.transport.roll_call import asking
from pushsum_opt.wrapped import putting_back

# Where it hits a generator that is being thrown away, Python itself drops it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

INTERRUPTED = 1  # the rank that is


class Interrupt:
    """Raises KeyboardInterrupt at the n-th point in this library where Python would call its handler of SIGINT.

    That is where a function begins, and behind a call of one that is not written in Python.
    Not where the ranks of one process have their common lock: there it would be left locked.
    """

    def __init__(self, number):
        self.number = number
        self.left = number

    def __enter__(self):
        sys.setprofile(self._event)
        return self

    def __exit__(self, *exc):
        sys.setprofile(None)

    def _event(self, frame, event, argument):
        file = frame.f_code.co_filename
        if event not in ("call", "c_return") or "pushsum_opt" not in file or "/transport/loopback/" in file:
            return
        self.left -= 1
        if self.left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt


@contextmanager
def none_comes():
    profile = sys.getprofile()
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(profile)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Ranks that wait for one that has been interrupted soon ask whether it comes."""
    monkeypatch.setattr(waiting, "LISTEN_AFTER_S", 0.01)
    monkeypatch.setattr(asking, "ASK_AFTER_S", 0.02)


@pytest.fixture(autouse=True)
def hold_back(monkeypatch):
    """In the threads of ranks nothing is held back, as Python calls no handlers there; ours is one."""
    for module in (over_push_sum, closing, rounds, putting_back):
        monkeypatch.setattr(module, "held_back", none_comes)


def until_it_comes_too_late(run, step):
    """Call ``run(n)`` with the interrupt at ever later points, until it says that the call was over before."""
    number, count = 1, 0
    while run(number):
        number += step
        count += 1
    assert count > 10, "there were hardly any points to interrupt"


@pytest.mark.parametrize(("staleness", "dtype"), [(0, torch.float64), (1, torch.float32), (0, torch.bfloat16)])
def test_interrupt_at_any_point_of_an_exact_average_leaves_all_tensors_before_or_after_it(
    staleness, dtype, monkeypatch
):
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "64")

    def ranks(number):
        def run(comm):
            tensors = [torch.full((48,), float(comm.rank + 1), dtype=dtype) for _ in range(3)]
            core = ps.PushSum(tensors, comm=comm, staleness=staleness, timeout=20.0)
            came = False
            try:
                if comm.rank == INTERRUPTED:
                    with Interrupt(number):
                        core.average()
                else:
                    core.average()
            except KeyboardInterrupt:
                came = True
                if not core.member.failed and core.round == 0:
                    core.average()  # nothing had begun: this rank is where the others wait for it
            except PeerFailed as error:
                assert "interrupted" in str(error)
            found = {float(value) for tensor in tensors for value in tensor}
            assert found in ({comm.rank + 1.0}, {1.5}), f"torn by interrupt {number}: {found}"
            assert core.round == (1 if found == {1.5} else 0)
            if core.member.failed and comm.rank == INTERRUPTED:
                with pytest.raises(ClosedError, match="Its own tensors are whole"):
                    core.mix()
            return came

        return testing.run(2, run, timeout=60.0)[INTERRUPTED]

    until_it_comes_too_late(ranks, 13)


def test_interrupt_at_any_point_of_averaged_leaves_what_the_tensors_held(monkeypatch):
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "64")

    def ranks(number):
        def run(comm):
            model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
            optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, timeout=20.0)
            with torch.no_grad():
                for held in model.state_dict().values():
                    held.fill_(comm.rank + 1)
            came = False
            try:
                with Interrupt(number if comm.rank == INTERRUPTED else 0), optimizer.averaged():
                    pass
            except KeyboardInterrupt:
                came = True
            except PeerFailed as error:
                assert "interrupted" in str(error)
            except PeerFinished:
                pass  # the other rank was interrupted before the call began, and has left
            found = {float(value) for held in model.state_dict().values() for value in held.reshape(-1)}
            assert found == {comm.rank + 1.0}, f"torn by interrupt {number}"
            assert optimizer.push_sum.member.lifetime.on_loan is None
            return came

        return testing.run(2, run, timeout=60.0)[INTERRUPTED]

    until_it_comes_too_late(ranks, 61)


def test_interrupt_at_any_point_of_a_round_is_told_to_the_others_and_counts_the_round_or_not():
    def ranks(number):
        def run(comm):
            core = ps.PushSum([np.full(4, float(comm.rank))], comm=comm, timeout=20.0)
            came = False
            try:
                with Interrupt(number if comm.rank == INTERRUPTED else 0):
                    core.mix()
            except KeyboardInterrupt:
                came = True
            except PeerFailed as error:
                assert "interrupted" in str(error)
            try:
                while core.round < 3:
                    core.mix()  # in step with the others, or refused: never a wait for a rank in another round
                core.close()
            except (ClosedError, PeerFailed) as error:
                assert "interrupt" in str(error)
                if comm.rank == INTERRUPTED:
                    with pytest.raises(ClosedError, match="some parts may hold what was merged"):
                        core.mix()
            return came

        return testing.run(2, run, timeout=60.0)[INTERRUPTED]

    until_it_comes_too_late(ranks, 7)


@pytest.mark.parametrize("call", ["broadcast_parameters", "average", "barrier"])
def test_interrupt_in_a_call_on_one_rank_ends_it_on_all_and_the_next_call_works(call):
    calls = {
        "broadcast_parameters": lambda tensors, comm: ps.broadcast_parameters(tensors, comm=comm),
        "average": lambda tensors, comm: ps.average(tensors["a"], comm=comm),
        "barrier": lambda tensors, comm: ps.barrier(comm=comm),
    }

    def ranks(number):
        def run(comm):
            tensors = {name: torch.full((16,), float(comm.rank)) for name in "abc"}
            ps.barrier(comm=comm)  # opens the channel
            came = ended = False
            try:
                with Interrupt(number if comm.rank == INTERRUPTED else 0):
                    calls[call](tensors, comm)
            except KeyboardInterrupt:
                came = ended = True
            except PeerFailed as error:
                assert "KeyboardInterrupt in ps." in str(error)
                ended = True
            except PeerFinished:
                pass
            assert all(len(set(tensor.tolist())) == 1 for tensor in tensors.values()), "a tensor is torn"
            return came, ended

        ended = testing.run(3, run, timeout=60.0)
        return ended[INTERRUPTED][0]

    until_it_comes_too_late(ranks, 2)


def test_after_an_interrupted_call_that_all_ranks_saw_the_next_one_is_sound():
    def run(comm):
        ps.barrier(comm=comm)
        try:
            with Interrupt(60 if comm.rank == INTERRUPTED else 0):
                ps.average(torch.ones(4), comm=comm)
        except (KeyboardInterrupt, PeerFailed):
            return ps.average(float(comm.rank), comm=comm)
        return None

    assert testing.run(2, run) == [0.5, 0.5]


def test_interrupt_while_a_rank_saves_ends_the_exchange_on_all(tmp_path):
    def ranks(number):
        def run(comm):
            model = torch.nn.Linear(3, 2)
            optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, timeout=20.0)
            came = False
            try:
                with Interrupt(number if comm.rank == INTERRUPTED else 0):
                    ps.checkpoint.save(tmp_path, optimizer)
            except KeyboardInterrupt:
                came = True
                if not optimizer.push_sum.member.failed:  # before or after all that ranks do together
                    optimizer.push_sum.member.fail(KeyboardInterrupt())
            except PeerFailed as error:
                assert "interrupted" in str(error)
            except CheckpointError:
                came = True  # torch.save() makes an error of some interrupts: all ranks have it
            return came

        return testing.run(2, run, timeout=60.0)[INTERRUPTED]

    until_it_comes_too_late(ranks, 97)


# ---------------------------------------------------------------------- what is held back


def test_interrupt_is_held_back_until_the_end_of_the_block_and_handlers_are_what_they_were():
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGINT)
        with held_back():
            signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done
    assert before == {number: signal.getsignal(number) for number in signal.valid_signals()}


def test_second_interrupt_while_averaged_puts_back_waits_until_all_is_put_back(monkeypatch):
    model = torch.nn.Linear(4, 4)
    (comm,) = testing.run(1, lambda comm: comm)
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)
    before = [p.clone() for p in model.parameters()]
    memory = optimizer.push_sum.memory
    plain = memory.put_raw

    def put_raw(chunk, flat):
        signal.raise_signal(signal.SIGINT)
        plain(chunk, flat)

    monkeypatch.setattr(memory, "put_raw", put_raw)
    for module in (over_push_sum, putting_back):
        monkeypatch.setattr(module, "held_back", held_back)
    with pytest.raises(KeyboardInterrupt), optimizer.averaged():
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        raise KeyboardInterrupt
    assert all(map(torch.equal, before, model.parameters()))
    optimizer.close()
