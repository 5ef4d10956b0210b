"""A host is one participant: where one of its ranks dies, its others end, and the other hosts go on."""

from __future__ import annotations

import math
import random

import pytest
import torch

import pushsum_opt as ps
from pushsum_opt.testing import Faults, Moment

LANES = 2


def train(size, faults, *, staleness=0, steps=8, seed=None, gossip_every=1):
    """Return what each survivor says of itself."""

    def rank(comm):
        torch.manual_seed(comm.rank)
        model = torch.nn.Linear(6, 3)
        inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = ps.PushSumOptimizer(
            inner, model, within_host="gradients", on_loss="continue", staleness=staleness, comm=comm, timeout=30,
            data_weight=1.0 + comm.rank % 3, gossip_every=gossip_every,
        )  # fmt: skip
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            if step % 3 == 2:
                assert ps.average(1.0, comm=comm) == 1.0  # between backward() and step()
            optimizer.step()
            if step % 4 == 3:
                with optimizer.averaged():
                    pass
        optimizer.drain()
        for _ in range(4):  # the hosts come together: no step is made any more
            optimizer.gossip()
        optimizer.drain()
        host = optimizer.push_sum.member.place.host
        with optimizer.averaged():
            mean = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        said = {
            "members": optimizer.members, "lane": host.lane, "w": optimizer.push_weight, "round": optimizer.round,
            "a": optimizer.push_sum.initial_weight, "losses": [loss.ranks for loss in optimizer.losses],
            "mass": [loss.mass for loss in optimizer.losses], "mean": mean,
            "z": torch.cat([p.detach().reshape(-1) for p in model.parameters()]),
        }  # fmt: skip
        optimizer.close()
        return said

    return ps.testing.run(size, rank, faults=faults, seed=seed, local_size=LANES, timeout=100)


def check(said):
    left = {rank: one for rank, one in enumerate(said) if one is not None}
    if not left:
        return
    members = next(iter(left.values()))["members"]
    assert len({(one["members"], tuple(one["losses"]), tuple(one["mass"]), one["round"]) for one in left.values()}) == 1
    hosts = len(members) // LANES
    if len(left) < len(members):  # the rest died after the last account
        return
    assert set(left) == set(members)
    assert [rank for rank in members if (rank ^ 1) not in members] == [], "hosts are lost as a whole"
    for lane in range(LANES):
        of_lane = [one for one in left.values() if one["lane"] == lane]
        assert math.fsum(one["w"] for one in of_lane) == pytest.approx(hosts, abs=1e-12)
        assert math.fsum(one["a"] for one in of_lane) == pytest.approx(hosts, abs=1e-12)
    first = next(iter(left.values()))
    for rank, one in left.items():
        assert torch.isfinite(one["z"]).all()
        torch.testing.assert_close(one["mean"], first["mean"])
        torch.testing.assert_close(one["z"], left[rank ^ 1]["z"], rtol=0, atol=0, msg="the ranks of a host are alike")


def test_each_of_two_optimizers_has_the_data_weights_of_the_hosts_that_are_left(tmp_path, monkeypatch):
    """Also: who has ended is noted for `pushsum run` by those who know it, on the host that is lost."""
    monkeypatch.setenv("PUSHSUM_PROGRESS", str(tmp_path))
    for rank in range(6):
        (tmp_path / f"{rank}.begun").touch()

    def rank(comm):
        made = []
        for scale in (1.0, 2.0):
            model = torch.nn.Linear(6, 3)
            optimizer = ps.PushSumOptimizer(
                torch.optim.SGD(model.parameters(), lr=0.1), model, within_host="gradients", on_loss="continue",
                comm=comm, timeout=30, data_weight=1.0 + scale * (comm.rank // LANES),
            )  # fmt: skip
            made.append((model, optimizer))
        for _ in range(6):
            for model, optimizer in made:
                model(torch.ones(4, 6)).square().mean().backward()
                optimizer.step()
        said = [optimizer.push_sum.initial_weight for _, optimizer in made]
        for _, optimizer in reversed(made):
            optimizer.close()
        return said

    said = ps.testing.run(6, rank, faults=Faults({3: Moment(call="step()", count=9)}), local_size=LANES, timeout=100)
    for one, host in ((0, 0), (1, 0), (4, 2), (5, 2)):
        expected = [2 * (1 + scale * host) / (2 + 2 * scale) for scale in (1.0, 2.0)]
        assert said[one] == pytest.approx(expected, abs=1e-12)
    assert sorted(path.stem for path in tmp_path.glob("*.lost")) == ["2", "3"]


MOMENTS = [
    Moment(count=3),
    Moment(count=9),
    Moment(call="PushSumOptimizer", count=20),
    Moment(what="the backward()", count=9),
    Moment(what="averaging gradients", count=3),
    Moment(what="reassembling", count=5),
    Moment(what="header", count=5),
    Moment(call="ps.average()", count=5),
    Moment(call="averaged()", count=5),
    Moment(call="close()", count=3),
]


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_host_that_loses_a_rank_is_lost_as_a_whole(moment, staleness):
    faults = Faults({2: moment})
    said = train(6, faults, staleness=staleness)
    assert faults.died == [2]
    assert said[2] is None
    check(said)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_dies_at_whatever_moment_whole_hosts_go_on(seed):
    draw = random.Random(seed)
    dying = draw.sample(range(6), draw.choice([1, 1, 2, 3]))
    calls = ["", "", "step()", "recovery", "averaged()"]
    moments = {rank: Moment(call=draw.choice(calls), count=draw.randint(1, 400)) for rank in dying}
    faults = Faults(moments, seed=seed, spread=draw.choice([0.0, 1e-3, 3e-3]))
    said = train(
        6,
        faults,
        staleness=draw.choice([0, 1, 2]),
        seed=seed if draw.random() < 0.5 else None,
        gossip_every=draw.choice([1, 1, 2]),
    )
    check(said)
