"""A stall line names the whole chain: who waits for whom for whom, and where the last one was last seen."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest

import pushsum_opt as ps
from pushsum_opt import testing
from pushsum_opt.collectives import averaged
from pushsum_opt.errors import PeerTimeout
from pushsum_opt.transport import waiting
from pushsum_opt.transport.roll_call import RollCall, asking, chain


def to_the_next(rank, size, round):
    return ((rank + 1) % size,)


class Said(ps.Listener):
    """Waits for a stall line in which something stands."""

    def __init__(self, pattern, heard):
        self.pattern, self.heard, self.lines = pattern, heard, []

    def stalled(self, seconds, what):
        self.lines.append(what)
        if re.search(self.pattern, what):
            self.heard.set()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setenv("PUSHSUM_STALL_SECONDS", "0.2")
    monkeypatch.setattr(waiting, "LISTEN_AFTER_S", 0.01)
    monkeypatch.setattr(asking, "ASK_AFTER_S", 0.02)
    monkeypatch.setattr(asking, "ASK_AGAIN_S", 0.1)
    monkeypatch.setattr(chain, "JUST_NOW_S", 0.5)


def asked_and_heard(monkeypatch, *, asker, rank):
    """Return two events; the second is set once a rank has asked another one."""
    heard, asked = threading.Event(), threading.Event()
    ask = RollCall.ask

    def noted(roll, to, need, wait):
        ask(roll, to, need, wait)
        if (to, roll.me) == (rank, asker):
            asked.set()

    monkeypatch.setattr(RollCall, "ask", noted)
    return heard, asked


def all_come(size, asked):
    """Return what ranks call to come together. There nobody waits in the library, and no question is under way.

    Before that, ranks that construct or make a round may ask each other too, as soon as one is late.
    """
    worlds = []

    def settle():
        for _ in ("questions", "answers"):
            for roll in worlds[0].rolls:
                roll.listen()
        asked.clear()

    barrier = threading.Barrier(size, action=settle)

    def come(comm):
        worlds.append(comm.world)
        barrier.wait(60)

    return come


def run(pattern, monkeypatch, *, size=4, staleness=0, stuck, asker=1, call=lambda push_sum: push_sum.mix()):
    """Rank 0 is ``stuck`` before its 4th call, until a stall line of the last rank has a pattern; return that line."""
    heard, asked = asked_and_heard(monkeypatch, asker=asker, rank=0)
    come_together = all_come(size, asked)

    def rank(comm):
        said = Said(pattern, heard)
        with ps.PushSum([np.zeros(3)], graph=to_the_next, staleness=staleness, timeout=60.0, comm=comm) as push_sum:
            if comm.rank == size - 1:
                push_sum.subscribe(said)
            for _ in range(3):
                push_sum.mix()
            come_together(comm)
            if comm.rank == 0:
                stuck(asked, heard)
            for _ in range(12):
                call(push_sum)
        return said.lines

    lines = testing.run(size, rank, timeout=90)[-1]
    return next((line for line in lines if re.search(pattern, line)), lines)


def in_forward_once_asked(asked, heard):
    assert asked.wait(60)
    with ps.observe.span("forward"):
        assert heard.wait(60)


def in_forward_from_the_first(asked, heard):
    with ps.observe.span("forward"):
        assert heard.wait(60)


def without_a_word(asked, heard):
    assert heard.wait(60)


CHAIN = r"^rank 2: .*\. Rank 2 waits for rank 1 \(.*\), which waits for rank 0 \(.*\), "


def test_three_ranks_wait_in_a_chain_for_one_that_was_last_seen_in_a_span(monkeypatch):
    line = run(CHAIN + r'which was last seen in "forward", [1-9]\d* s ago', monkeypatch, stuck=in_forward_once_asked)
    assert "which waits for rank 0 (its message of round 3)" in line


def test_a_rank_without_a_thread_that_computes_all_the_time_is_known_by_its_last_message(monkeypatch):
    pattern = CHAIN + r"whose last message, of round 2, came [1-9]\d* s ago, and nothing was heard from it since"
    assert re.search(pattern, run(pattern, monkeypatch, stuck=without_a_word))


@pytest.mark.parametrize("staleness", [1, 2])
def test_the_thread_of_a_rank_that_computes_says_in_which_span_it_is(staleness, monkeypatch):
    pattern = CHAIN + r'which is in "forward", for [1-9]\d* s now'
    assert re.search(pattern, run(pattern, monkeypatch, staleness=staleness, stuck=in_forward_from_the_first))


@pytest.mark.parametrize("staleness", [0, 1, "unbounded"])
def test_a_collective_call_says_where_a_rank_is_that_does_not_come(staleness, monkeypatch):
    def call(push_sum):
        with averaged(push_sum):
            pass

    pattern = r'^averaged\(\), a collective call .*\. Rank 0 (is|was last seen) in "forward"'
    line = run(pattern, monkeypatch, staleness=staleness, stuck=in_forward_once_asked, asker=3, call=call)
    assert re.search(pattern, line)


def test_a_chain_goes_on_through_the_ranks_of_a_host(monkeypatch):
    torch = pytest.importorskip("torch")
    pattern = (
        r"^rank 2: its message of round 2.*\. Rank 2 waits for rank 3 \(.* to meet the backward\(\).*\), which (is|was)"
    )
    pattern += r' .*in "loading"'
    heard, asked = asked_and_heard(monkeypatch, asker=2, rank=3)
    come_together = all_come(4, asked)

    def rank(comm):
        said = Said(pattern, heard)
        z = torch.zeros(3, requires_grad=True)
        inner = torch.optim.SGD([z], lr=0.1)
        with ps.PushSumOptimizer(
            inner, graph=to_the_next, within_host="gradients", timeout=60.0, comm=comm
        ) as optimizer:
            if comm.rank == 0:
                optimizer.push_sum.subscribe(said)
            for k in range(6):
                optimizer.zero_grad()
                if k == 2:
                    come_together(comm)
                if (comm.rank, k) == (3, 2):
                    assert asked.wait(60)
                    with ps.observe.span("loading"):
                        assert heard.wait(60)
                z.square().sum().backward()
                optimizer.step()
        return said.lines

    assert any(re.search(pattern, line) for line in testing.run(4, rank, local_size=2, timeout=90)[0])


def test_a_program_without_spans_is_known_by_its_rounds(monkeypatch):
    pattern = CHAIN + r"which is after round 2, for [1-9]\d* s now"
    assert re.search(pattern, run(pattern, monkeypatch, staleness=1, stuck=without_a_word))


def test_the_error_at_the_deadline_has_the_chain_too():
    done = threading.Event()

    def rank(comm):
        push_sum = ps.PushSum([np.zeros(3)], graph=to_the_next, timeout=60.0, comm=comm)
        if comm.rank == 2:
            push_sum.member.place.channel._waiter._timeout = 2.0  # of the rounds, not of construction
        if comm.rank == 0:
            assert done.wait(60)
            return
        try:
            for _ in range(3):
                push_sum.mix()
        except PeerTimeout as error:
            assert comm.rank == 2
            text = r"nothing came\. Rank 1 waits for rank 0 \(its message of round 0\), from which nothing was heard"
            assert re.search(text, str(error)), error
            raise
        finally:
            done.set()

    with pytest.raises(testing.RankErrors, match=r"PeerTimeout: rank 2: waited \d+\.\d s"):
        testing.run(3, rank, timeout=60)


def test_ranks_that_wait_for_each_other_in_a_circle_are_said_once():
    circle = [
        {"rank": 1, "what": "a", "waits": True, "doing": "waiting in step()", "since": None, "ago": 0.0, "sent": None},
        {"rank": 2, "what": "b", "waits": True, "doing": "waiting in step()", "since": None, "ago": 0.0, "sent": None},
        {"rank": 0, "what": "c", "waits": True, "doing": None, "since": None, "ago": None, "sent": None},
    ]
    assert chain.sentence(circle, int) == "Rank 1 waits for rank 2 (b), which waits for rank 0 (c)"
    assert chain.sentence(circle[:1], int) == "Rank 1 is waiting in step()"
    assert chain.sentence([], int) == ""
