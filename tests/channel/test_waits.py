"""Waits that will never end are named at once, on both sides; those of slow ranks are not."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support.ranks import on_ranks

import pushsum_opt as ps
from pushsum_opt import testing
from pushsum_opt.collectives import averaged
from pushsum_opt.errors import MismatchError, PeerFailed, PeerFinished, PeerTimeout
from pushsum_opt.graphs import Ring
from pushsum_opt.transport import Notice, Ticket, waiting
from pushsum_opt.transport.roll_call import RollCall, Waiting, asking
from pushsum_opt.transport.set_up import LogStalls


def errors_of(size, rank, **options):
    """Run and return every rank's error, also those that only follow another one."""
    found = {}

    def one(comm):
        try:
            rank(comm)
        except BaseException as error:
            found[comm.rank] = error
            everyone_is_here.wait(60)
            raise

    everyone_is_here = threading.Barrier(size)
    with pytest.raises(testing.RankErrors):
        testing.run(size, one, timeout=90, **options)
    return found


def exchange(comm, **options):
    return ps.PushSum([np.zeros(3)], graph=Ring(), timeout=60.0, comm=comm, **options)


CALLS = {
    "averaged()": lambda push_sum: averaged(push_sum).__enter__(),
    "drain()": lambda push_sum: push_sum.drain(),
    "consensus_distance()": ps.consensus_distance,
    "an exact average": lambda push_sum: push_sum.average(),
    "ps.average()": lambda push_sum: ps.average(1.0, comm=push_sum.comm),
    "ps.broadcast_object()": lambda push_sum: ps.broadcast_object(1, comm=push_sum.comm),
    "PushSum(...)": lambda push_sum: exchange(push_sum.comm),
}


@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_a_collective_call_on_one_rank_against_rounds_is_refused_on_both(call, staleness):
    def rank(comm):
        push_sum = exchange(comm, staleness=staleness)
        for _ in range(3):
            push_sum.mix()
        if comm.rank == 0:
            CALLS[call](push_sum)
        for _ in range(4):
            push_sum.mix()

    found = errors_of(2, rank)
    for error in found.values():
        assert isinstance(error, MismatchError | PeerFailed)
        assert call in str(error)
        assert "mix() in round" in str(error)
    assert any(isinstance(error, MismatchError) for error in found.values())


@pytest.mark.parametrize("warm", [False, True])
@on_ranks(3, timeout=60)
def test_a_rank_that_ended_is_named_by_those_who_wait_in_a_collective_call(comm, warm):
    if warm:
        ps.average(1.0, comm=comm)
    if comm.rank != 1:
        with pytest.raises(PeerFinished, match=r"rank 1 has ended its program.*in ps\.average\(\)"):
            ps.average(0.5, comm=comm)


@on_ranks(2, timeout=60)
def test_a_rank_that_ended_without_closing_is_named_by_those_who_wait_for_its_message(comm):
    push_sum = exchange(comm)
    push_sum.mix()
    if comm.rank == 0:
        with pytest.raises(PeerFinished, match=r"rank 1 has ended its program.*in mix\(\) in round 1"):
            push_sum.mix()


@pytest.mark.parametrize("warm", [False, True])
@on_ranks(2, timeout=60)
def test_two_different_calls_on_a_communicator_are_named(comm, warm):
    if warm:
        ps.average(1.0, comm=comm)
    with pytest.raises(MismatchError, match=r"ps\.average\(\).*ps\.broadcast_object\(\)|object.*average"):
        ps.average(1.0, comm=comm) if comm.rank else ps.broadcast_object(1, comm=comm)


@pytest.mark.parametrize("staleness", [0, 2, "unbounded"])
def test_slow_ranks_raise_no_alarm(staleness, monkeypatch):
    """Rank 0 comes to a call only when another one has waited in it for so long that it has asked for rank 0."""
    monkeypatch.setattr(waiting, "LISTEN_AFTER_S", 0.01)
    monkeypatch.setattr(asking, "ASK_AFTER_S", 0.02)
    calls = ("averaged", "average", "mix", "close")
    asked = {call: threading.Event() for call in calls}
    call_of = {}
    ask = RollCall.ask

    def noted(roll, rank, need, wait):
        ask(roll, rank, need, wait)
        if rank == 0 and roll.me in call_of:
            asked[call_of[roll.me]].set()

    monkeypatch.setattr(RollCall, "ask", noted)

    def rank(comm):
        push_sum = exchange(comm, staleness=staleness)
        for _ in range(2):
            push_sum.mix()
        for call in calls:
            call_of[comm.rank] = call
            if comm.rank == 0 and (call != "mix" or staleness == 0):  # in the other modes nobody waits there
                assert asked[call].wait(60), call
            if call == "averaged":
                with averaged(push_sum):
                    pass
            elif call == "average":
                ps.average(1.0, comm=comm)
            elif call == "mix":
                push_sum.mix()
            else:
                push_sum.close()

    testing.run(3, rank, timeout=100)


def test_ranks_of_a_host_that_wait_elsewhere_are_named_by_their_rank_in_the_job():
    torch = pytest.importorskip("torch")

    def rank(comm):
        z = torch.zeros(3, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.1)
        optimizer = ps.PushSumOptimizer(inner, graph=Ring(), within_host="gradients", comm=comm)
        assert (optimizer.push_sum.rank, optimizer.push_sum.size) == (comm.rank, 4)
        assert (optimizer.push_sum.participant, optimizer.push_sum.participants) == (comm.rank // 2, 2)
        if comm.rank == 2:
            with optimizer.averaged():
                pass
        optimizer.step()

    found = errors_of(4, rank, local_size=2)
    texts = [str(error) for error in found.values() if isinstance(error, MismatchError)]
    # Either side may be the first to see it, so rank 2 stands first or second.
    assert any("rank 2 calls averaged() in round 0" in text and "calls step() in round 0" in text for text in texts)


@pytest.mark.parametrize("before", [0, 4])
def test_averaged_on_rank_0_alone_is_refused_also_where_not_every_step_gossips(before):
    torch = pytest.importorskip("torch")

    def rank(comm):
        z = torch.zeros(3, requires_grad=True)
        optimizer = ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.1), gossip_every=3, staleness=2, comm=comm)
        for _ in range(before):
            optimizer.step()
        if comm.rank == 0:
            with optimizer.averaged():
                pass
        for _ in range(100):
            optimizer.step()

    texts = [str(error) for error in errors_of(3, rank).values() if isinstance(error, MismatchError)]
    assert any("calls averaged() in round" in text and "calls step() in round" in text for text in texts)


@pytest.mark.parametrize("make", ["null", "freed"])
def test_a_communicator_without_this_rank_is_refused(make):
    from mpi4py import MPI

    comm = MPI.COMM_NULL
    if make == "freed":
        comm = MPI.COMM_SELF.Dup()
        comm.Free()
    with pytest.raises(ps.errors.ConfigurationError, match=r"MPI\.COMM_NULL"):
        ps.average(1.0, comm=comm)
    with pytest.raises(ps.errors.ConfigurationError, match=r"MPI\.COMM_NULL"):
        ps.PushSum([np.zeros(1)], comm=comm)


def test_a_channel_does_not_outlive_its_communicator():
    from mpi4py import MPI

    for _ in range(3):
        comm = MPI.COMM_SELF.Dup()
        assert ps.average(2.0, comm=comm) == 2.0
        comm.Free()


class PeerThatFailsOnceItHasServed:
    """What a waiter polls, where the peer serves the ticket and fails between a poll and the look at notices."""

    rank = 0
    progress = None

    def __init__(self, ticket, serves):
        self.ticket, self.serves, self.said = ticket, serves, False

    def clock(self):
        return 0.0

    def job_rank(self, rank=None):
        return 0 if rank is None else rank

    def poll(self, seconds):
        if self.said:
            raise PeerFailed("as a loopback rank learns it")
        return False

    def notices(self):
        if self.said:
            return []
        self.said = True
        self.ticket.done = self.serves
        return [Notice(sender=1, failed=True, rounds=0, collectives=1, reason="it has seen a difference")]


@pytest.mark.parametrize("serves", [True, False])
def test_what_a_peer_did_before_it_failed_counts(serves):
    ticket = Ticket("comparing", None, None, collective=1)
    waiter = waiting.Waiter(PeerThatFailsOnceItHasServed(ticket, serves), LogStalls(0), timeout=60.0)
    if serves:
        waiter.wait((ticket,), 0)
        with pytest.raises(PeerFailed, match="rank 1 stopped: it has seen a difference"):  # it is not forgotten
            waiter.hear()
    else:
        with pytest.raises(PeerFailed, match="rank 1 stopped: it has seen a difference"):
            waiter.wait((ticket,), 0)


class NothingComes:
    """What a waiter polls on a host so busy that each look takes ten seconds."""

    rank = 0
    progress = None

    def __init__(self):
        self.now = 0.0

    def clock(self):
        return self.now

    def job_rank(self, rank=None):
        return 0 if rank is None else rank

    def poll(self, seconds):
        self.now += 10.0
        return False

    def notices(self):
        return []


def test_a_stall_is_told_before_the_time_is_up_also_where_the_rank_looks_too_late(caplog):
    waiter = waiting.Waiter(NothingComes(), LogStalls(0), timeout=5.0, stall_seconds=1.0)
    with pytest.raises(PeerTimeout, match=r"waited 10\.0 s for rank 1: its message"):
        waiter.wait((Ticket("its message", 1, None),), 0)
    assert [record.message[:34] for record in caplog.records] == ["rank 0 has waited 10.0 s for rank "]


class Post:
    """Words that come, and those that are sent."""

    me = 0

    def __init__(self, *messages):
        self.messages, self.sent = list(messages), []

    def send(self, to, message):
        self.sent.append(message)

    def receive(self):
        come, self.messages = self.messages, []
        return come


QUESTION = {"id": 1, "from": 1, "channel": "a", "number": 3}


def test_a_thread_that_listens_while_a_wait_ends_answers_and_goes_on():
    class EndsItsWait(RollCall):
        """Another thread sets ``waiting`` to None right after it was looked at."""

        @property
        def waiting(self):
            found, self._waiting = self._waiting, None
            return found

        @waiting.setter
        def waiting(self, value):
            self._waiting = value

    answer = EndsItsWait(Post()).answer(QUESTION)
    roll = EndsItsWait(Post(answer, QUESTION))
    for _ in range(2):
        roll.waiting = Waiting(roll, 0, int, "step()")
        roll.listen()
    assert [sent["answer"] for sent in roll._post.sent] == [1]


def test_what_goes_wrong_while_a_rank_computes_and_listens_shows_in_its_next_wait():
    class Broken(Post):
        def receive(self):
            raise ValueError("the network is gone")

    roll = RollCall(Broken())
    roll.listen_if_quiet()
    roll.listen_if_quiet(moved=True)
    with pytest.raises(ValueError, match="the network is gone"):
        roll.listen()
