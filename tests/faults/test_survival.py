"""Ranks die, and the others go on: the mass is accounted for, and nothing is left hanging."""

from __future__ import annotations

import math
import random
import threading
import time
from itertools import product

import numpy as np
import pytest
import torch

import pushsum_opt as ps
from pushsum_opt import graphs
from pushsum_opt.collectives import averaged
from pushsum_opt.errors import ConfigurationError, RanksLost
from pushsum_opt.testing import Faults, Moment
from pushsum_opt.transport.loopback.injection import Killed

pytestmark = pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.speed.SlowMixingWarning")

MODES = [0, 1, 2, "unbounded"]
CALLS = [
    "PushSum",
    "mix()",
    "drain()",
    "averaged()",
    "ps.average()",
    "consensus_distance()",
    "close()",
]


def ring(rank: int, size: int, round: int) -> tuple[int, ...]:
    return ((rank + 1) % size,) if size > 1 else ()


def run(size, script, faults, *, staleness=0, graph=None, seed=None, data_weights=None):
    """Run calls by their names on every rank; return what each survivor says of itself, and the masses of the dead."""

    def rank(comm):
        z = np.full(5, float(comm.rank), np.float32)
        mine = None if data_weights is None else data_weights[comm.rank]
        push_sum = ps.PushSum(
            {"z": z}, comm=comm, staleness=staleness, graph=graph, on_loss="continue", timeout=30,
            data_weight=1.0 if mine is None else mine,
        )  # fmt: skip
        for call in script:
            if call == "mix":
                push_sum.mix()
            elif call == "drain":
                push_sum.drain()
            elif call == "exact":
                push_sum.average()
            elif call == "averaged":
                before = z.copy()
                with averaged(push_sum):
                    pass
                assert staleness == "unbounded" or (z == before).all()
            elif call == "average":
                assert ps.average(1.0, comm=comm) == 1.0
            else:
                ps.consensus_distance(push_sum)
            assert push_sum.push_weight > 0
        push_sum.drain()
        push_sum.close()  # a rank may die in it, and some know of it sooner than others
        return {
            "members": push_sum.members, "rank": push_sum.rank, "round": push_sum.round, "w": push_sum.push_weight,
            "a": push_sum.initial_weight, "z": z.copy(), "losses": push_sum.losses,
        }  # fmt: skip

    return ps.testing.run(size, rank, faults=faults, seed=seed, timeout=100)


def check(said, script, staleness, data_weights=None):
    left = [one for one in said if one is not None]
    members = left[0]["members"]
    assert all(one["members"] == members for one in left)
    assert len({tuple((x.ranks, x.round, x.mass, x.taken_back) for x in one["losses"]) for one in left}) == 1
    there = len(said)
    for loss in left[0]["losses"]:
        assert -1e-9 <= loss.mass <= there + 1e-9
        assert -1e-9 <= loss.mass_taken_back <= there + 1e-9
        there -= len(loss.ranks)
    for one in left:
        assert 0 <= one["z"].min() <= one["z"].max() <= len(said) - 1
        if staleness != "unbounded":
            assert one["round"] == sum(call in ("mix", "exact") for call in script)
    if len(left) == len(members):  # otherwise a rank died after the last account
        assert math.fsum(one["w"] for one in left) == pytest.approx(len(left), abs=1e-12)
        v = [1.0] * len(said) if data_weights is None else data_weights
        for one in left:
            expected = len(left) * v[members[one["rank"]]] / sum(v[member] for member in members)
            assert one["a"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("call", "staleness"), [*product(CALLS, MODES), *product(["an exact average"], [0, 1, 2])])
def test_survivors_of_a_death_in_any_call_go_on(call, staleness):
    script = ["mix", "mix", "averaged", "mix", "average", "distance", "mix", "mix"]
    script += [] if staleness == "unbounded" else ["exact", "mix"]
    faults = Faults({2: Moment(call=call)})
    said = run(5, script, faults, staleness=staleness)
    check(said, script, staleness)
    assert faults.died == [2]
    assert said[2] is None
    for one in said:
        if one is not None and one["losses"]:
            assert one["losses"][0].ranks == (2,)


@pytest.mark.parametrize("staleness", MODES)
@pytest.mark.parametrize("what", ["header", "chunk"])
def test_a_rank_dies_before_the_header_or_between_header_and_chunks(what, staleness):
    script = ["mix"] * 8
    faults = Faults({1: Moment(call="mix()", what=what, operation="post", count=1 if staleness == "unbounded" else 3)})
    said = run(4, script, faults, staleness=staleness, graph=ring)
    assert faults.died == [1]
    check(said, script, staleness)


@pytest.mark.parametrize("staleness", MODES)
def test_a_second_rank_dies_during_the_recovery(staleness):
    script = ["mix"] * 8
    faults = Faults({2: Moment(call="mix()", count=9), 0: Moment(call="recovery", count=4)})
    said = run(5, script, faults, staleness=staleness)
    assert faults.died == [2, 0]
    check(said, script, staleness)
    assert said[1]["members"] == (1, 3, 4)


@pytest.mark.parametrize("staleness", MODES)
def test_a_second_rank_dies_after_the_first_loss_is_settled_and_before_the_others_exchange_again(staleness):
    script = ["mix"] * 8
    connecting = Moment(call="recovery after a loss > PushSum", operation="collective")
    faults = Faults({2: Moment(call="mix()", count=9), 0: connecting})
    said = run(5, script, faults, staleness=staleness)
    check(said, script, staleness)
    assert [[loss.ranks for loss in said[rank]["losses"]] for rank in (1, 3, 4)] == [[(2,), (0,)]] * 3


@pytest.mark.parametrize("staleness", MODES)
def test_the_last_rank_goes_on_alone(staleness):
    script = ["mix"] * 12
    faults = Faults({rank: Moment(call="mix()", count=6 + 4 * rank) for rank in range(3)})
    said = run(4, script, faults, staleness=staleness)
    assert sorted(faults.died) == [0, 1, 2]
    check(said, script, staleness)
    assert said[3]["members"] == (3,)
    assert said[3]["w"] == pytest.approx(1.0, abs=1e-12)


def test_what_the_dead_held_and_what_survivors_hold_is_all_the_mass_there_was():
    """A rank that dies before it gives holds all that it was given, but for what its sender cannot know to be opened.

    On a ring of synchronous ranks that is one message: the one of the last round in which the dead rank was heard.
    """
    masses = {}

    def rank(comm):
        push_sum = ps.PushSum([np.zeros(3)], comm=comm, graph=ring, on_loss="continue", timeout=30)
        for _ in range(6):
            masses[comm.rank] = push_sum.push_weight
            push_sum.mix()
        push_sum.drain()  # until then a rank that needs nothing of the dead one may not have heard of its death
        loss = push_sum.losses[0]
        push_sum.close()
        return loss

    losses = ps.testing.run(5, rank, faults=Faults({3: Moment(what="header", operation="post", count=4)}), timeout=60)
    last_message = 0.5
    assert losses[0].mass == pytest.approx(masses[3] - last_message, abs=1e-12)
    assert all(loss is None or loss.mass == losses[0].mass for loss in losses)


def test_an_exact_average_that_was_not_committed_is_undone_before_it_is_repeated():
    """Rank 2 dies when all ranks have averaged, and none knows that all have: the next average is over the others."""

    def rank(comm):
        z = np.full(3, float(comm.rank))
        with ps.PushSum([z], comm=comm, on_loss="continue", timeout=30) as push_sum:
            push_sum.average()
            return z.tolist(), push_sum.push_weight, push_sum.round

    construction_and_average = 2
    faults = Faults({2: Moment(what="every rank to end its call", count=construction_and_average)})
    said = ps.testing.run(4, rank, faults=faults, timeout=60)
    assert said == [([4 / 3] * 3, 1.0, 1), ([4 / 3] * 3, 1.0, 1), None, ([4 / 3] * 3, 1.0, 1)]


@pytest.mark.parametrize("staleness", [1, 2])
def test_messages_that_were_opened_long_ago_are_not_taken_back(staleness):
    said = run(4, ["mix"] * 30, Faults({1: Moment(what="header", operation="post", count=25)}), staleness=staleness)
    check(said, ["mix"] * 30, staleness)
    (loss,) = said[0]["losses"]
    at_most_in_flight, survivors = 2 * staleness + 2, 3
    assert 0 < loss.taken_back <= at_most_in_flight * survivors


@pytest.mark.parametrize("seed", range(60))
def test_whoever_dies_at_whatever_moment(seed):
    draw = random.Random(seed)
    size, staleness = draw.randint(2, 9), draw.choice(MODES)
    graph = draw.choice([None, ring, graphs.StaticExponential(), graphs.Complete(), graphs.OnePeerExponential()])
    dying = draw.sample(range(size), draw.randint(1, size - 1) if draw.random() < 0.4 else 1)
    calls = ["", "", "", "mix()", "recovery", "drain()", "averaged()"]
    moments = {rank: Moment(call=draw.choice(calls), count=draw.randint(1, 120)) for rank in dying}
    kinds = ["mix"] * 6 + ["drain", "averaged", "average", "distance"] + ([] if staleness == "unbounded" else ["exact"])
    script = [draw.choice(kinds) for _ in range(draw.randint(3, 12))]
    data_weights = [1.0 + rank % 3 for rank in range(size)] if draw.random() < 0.3 else None
    faults = Faults(moments, seed=seed, spread=draw.choice([0.0, 1e-3, 3e-3]))
    late = seed if draw.random() < 0.5 else None
    said = run(size, script, faults, staleness=staleness, graph=graph, seed=late, data_weights=data_weights)
    check(said, script, staleness, data_weights)


def test_an_optimizer_goes_on_with_fewer_ranks_and_says_so(tmp_path):
    changes = {}

    def train(comm):
        me = comm.rank
        torch.manual_seed(me)
        model = torch.nn.Linear(3, 2)
        wrapped = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = ps.PushSumOptimizer(wrapped, model, comm=comm, staleness=1, on_loss="continue", timeout=30)
        optimizer.on_change(lambda: changes.setdefault(me, (optimizer.rank, optimizer.size, ps.rank(), ps.size())))
        for step in range(10):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
            if step == 7:
                ps.checkpoint.save(tmp_path, optimizer)
        optimizer.drain()
        said = optimizer.members, optimizer.round, optimizer.push_weight
        optimizer.close()
        return said

    said = ps.testing.run(4, train, faults=Faults({0: Moment(call="step()", count=40)}), timeout=100)
    assert said[0] is None
    assert [one[:2] for one in said[1:]] == [((1, 2, 3), 10)] * 3
    assert math.fsum(one[2] for one in said[1:]) == pytest.approx(3.0, abs=1e-12)
    assert changes == {1: (0, 3, 0, 3), 2: (1, 3, 1, 3), 3: (2, 3, 2, 3)}
    assert [path.is_dir() for path in tmp_path.iterdir()] == [True]


def test_nobody_waits_for_a_rank_that_knows_that_all_is_over_and_has_ended():
    """Rank 0 has passed the last barrier and ended; rank 1 has not when rank 2 dies, and learns that it is over."""
    ended, late = threading.Event(), threading.Event()

    def rank(comm):
        push_sum = ps.PushSum([np.full(3, float(comm.rank))], comm=comm, on_loss="continue", timeout=30)
        push_sum.mix()
        survival = push_sum.member.survival
        passes = survival._all_have_done_it

        def passes_not():
            passes()
            assert ended.wait(20)
            comm.world.kill(2)
            late.set()
            raise RanksLost("as where MPI has ended the barrier on other ranks, and not on this one")

        if comm.rank == 1:
            survival._all_have_done_it = passes_not
        push_sum.close()
        if comm.rank == 0:
            threading.Timer(0.05, ended.set).start()
        if comm.rank == 2:
            assert late.wait(20)
            raise Killed(2)
        return push_sum.closed, push_sum.losses

    begin = time.monotonic()
    assert ps.testing.run(3, rank, faults=Faults({}), timeout=60) == [(True, []), (True, []), None]
    assert time.monotonic() - begin < 20, "nobody waited until the timeout"


def test_on_loss_is_stop_or_continue():
    with pytest.raises(ConfigurationError, match="on_loss='ignore': expected 'stop' or 'continue'"):
        ps.PushSum([np.zeros(1)], on_loss="ignore")


def test_a_death_after_all_have_closed_is_missed_by_none():
    """Rank 1 ends its work as the last, and dies in it; an asynchronous rank still takes back what it listened for."""

    def rank(comm):
        push_sum = ps.PushSum([np.zeros(3)], comm=comm, staleness="unbounded", on_loss="continue", timeout=30)
        push_sum.mix()
        mode = push_sum.member.mode
        close = mode.close

        def late():
            if comm.rank == 1:
                comm.world.kill(1)
            while 1 not in comm.world.dead or comm.world.lost(comm.rank) != [1]:
                time.sleep(1e-3)
            close()

        mode.close = late
        push_sum.close()
        return push_sum.closed

    said = ps.testing.run(3, rank, faults=Faults({}), timeout=60)
    assert (said[0], said[2]) == (True, True)
