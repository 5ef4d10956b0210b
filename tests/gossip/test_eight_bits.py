"""``wire_dtype="int8"`` in whole runs: ranks come near each other, no mass is lost, and it mends itself."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from support.problems import Irregular

import pushsum_opt as ps
from pushsum_opt import Listener
from pushsum_opt.gossip.wire import HEADER_BYTES

MODES = [0, 1, 2]
ring = ps.graphs.Ring()


def numerator(push_sum, tensors):
    """x = w z + r, in float64, flat."""
    residuals = push_sum.state()["residuals"]
    parts = []
    for name, z in tensors.items():
        real = torch.view_as_real(z) if z.is_complex() else z
        x = push_sum.push_weight * real.double()
        if name in residuals:
            x = x + residuals[name].double().reshape(x.shape)
        parts.append(x.reshape(-1))
    return torch.cat(parts)


def run(size, make, rounds, between, *, after=None, **options):
    """Mix, with something done between rounds; return (x at the end, w, stats, spread by round) of each rank."""

    def rank(comm):
        tensors = make(comm.rank)
        path = []
        with ps.PushSum(tensors, wire_dtype="int8", comm=comm, **options) as push_sum:
            for k in range(rounds):
                between(k, comm.rank, tensors, push_sum)
                push_sum.mix()
                path.append(torch.cat([z.double().reshape(-1) for z in tensors.values() if not z.is_complex()]))
            push_sum.drain()
            return numerator(push_sum, tensors), push_sum.push_weight, push_sum.stats(), path

    return ps.testing.run(size, rank)


def spread(results, k=-1):
    return max((path[k] - results[0][3][k]).abs().max().item() for *_, path in results)


def nothing(k, rank, tensors, push_sum):
    pass


def walk(scale):
    """Local steps at random, the same in every run, on all tensors."""

    def between(k, rank, tensors, push_sum):
        noise = torch.Generator().manual_seed(1000 * k + rank)
        with push_sum.local_step():
            for z in tensors.values():
                z += scale * torch.randn(z.shape, generator=noise, dtype=z.dtype)

    return between


def one(rank):
    return {"z": torch.randn(3000, generator=torch.Generator().manual_seed(7))}


@pytest.mark.parametrize("staleness", MODES)
def test_no_block_is_missed_in_a_steady_run_and_messages_are_a_quarter_as_long(staleness):
    results = run(4, one, 60, walk(1e-3), staleness=staleness)
    for _, _, stats, _ in results:
        assert stats["blocks_missed"] == 0
        assert stats["bytes_sent"] - 60 * HEADER_BYTES < 60 * 4 * 3000 * 0.48, (
            "whole in the first 16 rounds, and then a quarter"
        )
    assert spread(results) < 0.05


@pytest.mark.parametrize("staleness", MODES)
def test_nothing_of_the_mean_is_lost_whatever_dtypes_and_scales_share_a_message(staleness):
    def make(rank):
        rng = torch.Generator().manual_seed(rank)
        return {
            "wide": torch.randn(700, generator=rng, dtype=torch.float64),
            "half": torch.randn(600, generator=rng).bfloat16(),
            "wave": torch.randn(300, generator=rng, dtype=torch.complex64),
            "large": 1e6 * torch.randn(5, generator=rng),
            "small": 1e-6 * torch.randn(5, generator=rng),
            "tiny": 1e-42 * torch.randn(40, generator=rng),
            "zero": torch.zeros(90),
            "across": torch.randn(40, 30, generator=rng).t(),
        }

    before = sum(numerator_of(make(rank)) for rank in range(3))
    results = run(3, make, 40, nothing, staleness=staleness, graph=Irregular(2))
    assert sum(w for _, w, *_ in results) == pytest.approx(3, rel=1e-13)
    after = sum(x for x, *_ in results)
    scale = before.abs().clamp_min(1.0)
    scale[-1200 - 90 - 40 - 5 - 5 : -1200 - 90 - 40 - 5] = 3e6
    assert ((after - before).abs() / scale).max() < 2e-5, "float32 and bf16 round in merges, as without eight bits"
    assert sum(stats["blocks_missed"] for *_, stats, _ in results) == 0


def numerator_of(tensors):
    class AtStart:
        push_weight = 1.0

        def state(self):
            return {"residuals": {}}

    return numerator(AtStart(), tensors)


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_jump_of_the_learning_rate_is_followed_within_some_rounds(staleness):
    calm, wild = walk(1e-4), walk(1e-2)

    def between(k, rank, tensors, push_sum):
        (wild if 30 <= k < 40 else calm)(k, rank, tensors, push_sum)

    results = run(4, one, 80, between, staleness=staleness)
    assert sum(w for _, w, *_ in results) == pytest.approx(4, rel=1e-13)
    assert spread(results) < 0.02, "as near as a rate of 1e-4 and the bounds of a rate of 1e-2 allow"


@pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.SlowMixingWarning")
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_block_that_runs_away_on_one_rank_is_missed_for_a_while_and_then_followed(staleness):
    """On a ring, the rank that sends to it is the last to hear of it. Till then its own grid must not grow coarser."""

    def sixteen_blocks(rank):
        return {"z": torch.randn(16 * 512, generator=torch.Generator().manual_seed(7))}

    way = 0.02 * torch.sign(torch.randn(512, generator=torch.Generator().manual_seed(5)))
    calm = walk(1e-3)

    def between(k, rank, tensors, push_sum):
        calm(k, rank, tensors, push_sum)
        if rank == 3 and 40 <= k < 55:
            with push_sum.local_step():
                tensors["z"][:512] += way

    results = run(8, sixteen_blocks, 120, between, graph=ring, staleness=staleness)
    assert sum(w for _, w, *_ in results) == pytest.approx(8, rel=1e-13)
    assert sum(stats["blocks_missed"] for *_, stats, _ in results) > 0
    assert max(spread(results, k) for k in range(120)) < 2 * 0.02 * 15
    assert spread(results) < 0.05


@pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.SlowMixingWarning")
def test_a_run_that_is_saved_has_the_bits_of_one_that_is_not_also_where_ranks_ask_for_whole_messages():
    calm = walk(1e-3)

    def moves(k, rank, tensors, push_sum):
        calm(k, rank, tensors, push_sum)
        if rank == 2 and 30 <= k < 40:
            with push_sum.local_step():
                tensors["z"][:1500] += 0.05

    def saves_too(k, rank, tensors, push_sum):
        moves(k, rank, tensors, push_sum)
        push_sum.state()

    one_run, other = (run(4, one, 60, between, graph=ring, staleness=2) for between in (moves, saves_too))
    assert sum(stats["blocks_missed"] for *_, stats, _ in one_run) > 0
    for (x, w, _, path), (y, v, _, its) in zip(one_run, other, strict=True):
        assert w == v
        assert torch.equal(x, y)
        assert all(map(torch.equal, path, its))


@pytest.mark.parametrize("graph", [None, ring])
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_rank_that_was_put_far_away_comes_back_to_the_others(staleness, graph):
    """As one that loads an old file alone: it misses everything, so everybody sends whole numbers for some rounds."""
    heard = []

    class Misses(Listener):
        def blocks_missed(self, round, peer, count):
            heard.append((round, peer, count))

    def between(k, rank, tensors, push_sum):
        if k == 0:
            push_sum.subscribe(Misses())
        if k == 20 and rank == 2:
            tensors["z"] += 50.0

    results = run(5, one, 80 if graph is None else 160, between, staleness=staleness, graph=graph)
    assert sum(w for _, w, *_ in results) == pytest.approx(5, rel=1e-13)
    assert min(heard)[0] >= 20 - staleness
    assert sum(count for *_, count in heard) == sum(stats["blocks_missed"] for *_, stats, _ in results) > 0
    assert spread(results) < 0.1, "they were 50 apart"


@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_skip_heals_a_poisoned_rank(poison):
    def between(k, rank, tensors, push_sum):
        if k == 25 and rank == 1:
            tensors["z"][5:9] = poison

    results = run(4, one, 60, between, nonfinite="skip", graph=ring)
    assert sum(w for _, w, *_ in results) == pytest.approx(4, rel=1e-13)
    for x, *_, path in results:
        assert torch.isfinite(x).all()
        assert all(torch.isfinite(z).all() for z in path[40:]), "healed once the news was round the ring"
    assert sum(stats["chunks_skipped"] for *_, stats, _ in results) > 0


def test_raise_names_the_sender_of_a_message_that_is_not_finite():
    def between(k, rank, tensors, push_sum):
        if k == 25 and rank == 1:
            tensors["z"][5] = np.nan

    with pytest.raises(ps.testing.RankErrors, match=r"message of rank 1 in round 25 holds inf or nan in z"):
        run(3, one, 30, between, graph=ring)


def test_an_exact_average_in_between_and_a_graph_that_changes_disturb_nothing():
    def between(k, rank, tensors, push_sum):
        walk(1e-3)(k, rank, tensors, push_sum)
        if k % 7 == 6:
            push_sum.average()

    graph = ps.graphs.Schedule([(20, ps.graphs.Complete()), (None, ps.graphs.OnePeerExponential())])
    results = run(5, one, 40, between, graph=graph)
    assert sum(w for _, w, *_ in results) == pytest.approx(5, rel=1e-13)
    assert sum(stats["blocks_missed"] for *_, stats, _ in results) == 0


def test_many_missed_blocks_are_reported_once(caplog):
    """Each rank walks by itself, ever faster."""

    def between(k, rank, tensors, push_sum):
        tensors["z"] += 1e-3 * 6.0**k * (rank - 1)

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        results = run(3, one, 90, lambda k, *others: between(max(0, k - 60), *others), graph=ring)
    assert sum(stats["blocks_missed"] for *_, stats, _ in results) > 0
    said = [record.getMessage() for record in caplog.records if "eight bits" in record.getMessage()]
    assert said
    assert len(said) <= 9
    assert "wire_dtype='bfloat16'" in said[0]


@pytest.mark.parametrize("other", [None, "bfloat16"])
def test_ranks_that_disagree_about_the_wire_are_told(other):
    def rank(comm):
        ps.PushSum([torch.zeros(9)], wire_dtype="int8" if comm.rank else other, comm=comm)

    with pytest.raises(ps.testing.RankErrors, match="layout of messages"):
        ps.testing.run(3, rank)
