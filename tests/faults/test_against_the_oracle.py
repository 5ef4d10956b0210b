"""Survivors have the parameters and the mass that the rule of loss says, as an independent simulation finds them.

What the simulation cannot know is which ranks had come how far when one died: it is forced in the first test, and
recorded in the others. Every number is the simulation's own.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from functools import cache
from itertools import product

import numpy as np
import pytest
from support.oracle import irregular_column_stochastic
from support.oracle_of_loss import MortalRanks
from support.problems import Irregular, problem

import pushsum_opt as ps
from pushsum_opt.faults import Ledger
from pushsum_opt.gossip.merging import Merger
from pushsum_opt.testing import Faults, Moment
from pushsum_opt.transport.loopback.injection import Killed

pytestmark = pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.speed.SlowMixingWarning")

RATE = 0.05


def ring(rank, size, round):
    return ((rank + 1) % size,) if size > 1 else ()


def complete(rank, size, round):
    return tuple(other for other in range(size) if other != rank)


def exponential(rank, size, round):
    """One peer, at the distances 1, 2, 4 ... in turn."""
    return ((rank + 2 ** (round % (size - 1).bit_length())) % size,) if size > 1 else ()


def two_peers(rank, size, round):
    return tuple(sorted({(rank + 1 + round % (size - 1)) % size, (rank + 1) % size})) if size > 1 else ()


def matrices_of(peers):
    @cache
    def matrices(size, round):
        matrix = np.zeros((size, size))
        for i in range(size):
            targets = peers(i, size, round)
            for j in (i, *targets):
                matrix[j, i] = 1 / (1 + len(targets))
        return matrix

    return matrices


GRAPHS = {graph.__name__: (graph, matrices_of(graph)) for graph in (ring, complete, exponential, two_peers)}
GRAPHS["irregular"] = Irregular(3), lambda size, round: irregular_column_stochastic(size, round, 3)[1]


def step(push_sum, z, me, gradient):
    with push_sum.local_step():
        z -= RATE * gradient(me, push_sum.round, z)


def expect(oracle, gradient, i):
    """Let rank i of the oracle begin a round."""
    oracle.step(i, -RATE * gradient(i, oracle.round[i], oracle.z(i)))


def expect_round(oracle, gradient, sent):
    """Do one round on all ranks of the oracle, as ranks do that nothing disturbs.

    Args:
        sent: the rounds whose messages are in flight.
    """
    tau, there = oracle.tau, list(oracle.there)
    for i in there:
        expect(oracle, gradient, i)
    k = oracle.round[there[0]] - 1
    for i in there:
        for j in oracle.out_peers(i, k):
            oracle.give(i, j)
    sent.append(k)
    while sent and sent[0] <= k - tau:
        expect_merges(oracle, sent.pop(0))


def expect_merges(oracle, k):
    for i in oracle.there:
        for j in oracle.there:
            if oracle.find(i, j, k) is not None:
                oracle.open(i, j, k)
                oracle.merge(i, j, k)


def assert_same_loss(found, expected, ranks):
    assert found.ranks == tuple(ranks)
    assert (found.round, found.taken_back) == (expected.round, expected.taken_back)
    assert found.mass == pytest.approx(expected.mass, abs=1e-12)
    assert found.mass_taken_back == pytest.approx(expected.mass_taken_back, abs=1e-12)


def assert_same_state(found, oracle, i):
    z, w, a = found
    np.testing.assert_allclose(z, oracle.z(i), rtol=1e-11, atol=1e-12)
    assert w == pytest.approx(oracle.w[i], rel=1e-12)
    assert a == pytest.approx(oracle.a[i], rel=1e-12)


CASES = [
    (size, staleness, list(GRAPHS)[(size + staleness + one) % len(GRAPHS)])
    for size, staleness, one in product(range(2, 10), [0, 1, 2], [0, 1])
]
"""Every size with every mode, on two graphs each; every graph with every mode."""


@pytest.mark.parametrize(("size", "staleness", "graph"), CASES)
def test_from_the_round_of_a_death_on_survivors_follow_the_paper_without_the_dead(size, staleness, graph):
    """Ranks die between two rounds, when all have done the same: nothing that follows is left to chance."""
    draw = random.Random(f"{graph} {staleness} {size}")
    rounds = 16
    dying = draw.sample(range(size), draw.randint(1, min(3, size - 1)))
    moments = sorted(draw.choices(range(1, 13), k=len(dying)))  # two at once, too
    deaths = {k: sorted(d for d, at in zip(dying, moments, strict=True) if at == k) for k in moments}
    z0, data_weights, gradient = problem(size)
    peers, matrices = GRAPHS[graph]

    oracle, expected, sent = MortalRanks(z0, data_weights, matrices, staleness), [], []
    for k in range(rounds):
        if k in deaths:
            expected.append(oracle.lose(deaths[k]))
            sent.clear()
        expect_round(oracle, gradient, sent)
    for k in sent:
        expect_merges(oracle, k)

    together = {k: threading.Barrier(len(dead), timeout=30) for k, dead in deaths.items()}

    def rank(comm):
        me, z = comm.rank, z0[comm.rank].copy()
        push_sum = ps.PushSum(
            [z], comm=comm, graph=peers, staleness=staleness, on_loss="continue", timeout=30,
            data_weight=data_weights[me],
        )  # fmt: skip
        for k in range(rounds):
            if k in deaths:
                ps.average(1.0)  # all have come here
                if me in deaths[k]:
                    if together[k].wait() == 0:
                        for dead in deaths[k]:
                            comm.world.kill(dead)
                    raise Killed(me)
                ps.average(1.0)  # all that are left have settled it
            step(push_sum, z, me, gradient)
            push_sum.mix()
        push_sum.drain()
        push_sum.close()
        return z.copy(), push_sum.push_weight, push_sum.initial_weight, push_sum.losses

    said = ps.testing.run(size, rank, faults=Faults({}), timeout=60)
    assert [i for i in range(size) if said[i] is not None] == oracle.there
    for i in oracle.there:
        assert_same_state(said[i][:3], oracle, i)
        for found, one, dead in zip(said[i][3], expected, deaths.values(), strict=True):
            assert_same_loss(found, one, dead)


@pytest.fixture
def facts(monkeypatch):
    return recorded(monkeypatch)


def recorded(monkeypatch):
    """Have recorded what each rank gives, opens and merges, in the order in which it does it; no numbers."""
    facts = {}

    def note(*fact):
        facts.setdefault(threading.current_thread().name, []).append(fact)

    def noting(original, *name):
        def note_and_do(self, *args, **kwargs):
            note(*name, *args, *kwargs.values())
            return original(self, *args, **kwargs)

        return note_and_do

    def merge(self, chunk, slab, peer, round, weight, mass):
        merged = whole(self, chunk, slab, peer, round, weight, mass)
        note("merge", peer, round)
        return merged

    whole = Merger.merge
    monkeypatch.setattr(Merger, "merge", merge)
    for call in ("give", "accept", "all_opened"):
        monkeypatch.setattr(Ledger, call, noting(getattr(Ledger, call), call))
    facts["note"] = note
    return facts


class Replay:
    """The oracle does what ranks have done, each in its order, and finds out itself what comes of it."""

    def __init__(self, oracle, gradient, facts):
        self.oracle, self.gradient, self.losses = oracle, gradient, 0
        self.facts = {i: deque(facts.get(f"rank {i}", ())) for i in oracle.there}

    def until_the_next_loss(self):
        moved = True
        while moved:
            moved = any(self._advance(i) for i in self.oracle.there)
        for i in self.oracle.there:
            assert not self.facts[i] or self.facts[i][0][0] == "loss", (i, self.facts[i][0])

    def _advance(self, i):
        moved = False
        while self.facts[i] and self._do(i, *self.facts[i][0]):
            self.facts[i].popleft()
            moved = True
        return moved

    def _do(self, i, what, *about):
        oracle, there = self.oracle, self.oracle.there
        if what == "step":
            expect(oracle, self.gradient, i)
        elif what == "give":
            oracle.give(i, there[about[0]])
        elif what == "accept":
            if oracle.find(i, there[about[0]], about[1]) is None:
                return False
            oracle.open(i, there[about[0]], about[1])
        elif what == "merge":
            oracle.merge(i, there[about[0]], about[1])
        elif what == "all_opened":
            oracle.nothing_is_in_flight(i)
        return what != "loss"

    def lose(self, dead):
        lost = self.oracle.lose(dead)
        self.losses += 1
        for i in self.oracle.there:
            if self.facts[i] and self.facts[i][0] == ("loss", self.losses):  # one recovery may settle several
                self.facts[i].popleft()
        return lost


@pytest.mark.parametrize("seed", range(40))
def test_whoever_dies_at_whatever_moment_survivors_follow_the_paper(seed, facts):
    """Several deaths, in the middle of rounds, drains and recoveries; of some messages only a part has come."""
    note, draw = facts.pop("note"), random.Random(500 + seed)
    size, staleness, graph = draw.randint(2, 9), draw.choice([0, 1, 2]), draw.choice(list(GRAPHS))
    dying = draw.sample(range(size), draw.randint(1, min(3, size - 1)))
    calls = ["mix()", "mix()", "mix()", "drain()", "recovery"]  # construction has no mass to lose
    moments = {d: Moment(call=draw.choice(calls), count=draw.randint(1, 90)) for d in dying}
    z0, data_weights, gradient = problem(size)
    peers, matrices = GRAPHS[graph]
    kinds = [draw.choice(["mix"] * 7 + ["drain"]) for _ in range(16)]

    def rank(comm):
        me, z = comm.rank, z0[comm.rank].copy()
        push_sum = ps.PushSum(
            [z], comm=comm, graph=peers, staleness=staleness, on_loss="continue", timeout=30,
            data_weight=data_weights[me],
        )  # fmt: skip
        if push_sum.losses:  # before this rank has done anything
            note("loss", len(push_sum.losses))
        push_sum.on_change(lambda: note("loss", len(push_sum.losses)))
        for kind in kinds:
            if kind == "mix":
                note("step")
                step(push_sum, z, me, gradient)
                push_sum.mix()
            else:
                push_sum.drain()
        push_sum.drain()
        push_sum.close()
        return z.copy(), push_sum.push_weight, push_sum.initial_weight, push_sum.losses

    faults = Faults(moments, seed=seed, spread=draw.choice([0.0, 1e-3, 3e-3]))
    said = ps.testing.run(size, rank, faults=faults, timeout=60)
    left = [i for i in range(size) if said[i] is not None]
    losses = max((said[i][3] for i in left), key=len)
    replay = Replay(MortalRanks(z0, data_weights, matrices, staleness), gradient, facts)
    for loss in losses:
        replay.until_the_next_loss()
        assert_same_loss(loss, replay.lose(loss.ranks), loss.ranks)
    replay.until_the_next_loss()
    for i in left:
        assert_same_state(said[i][:3], replay.oracle, i)
