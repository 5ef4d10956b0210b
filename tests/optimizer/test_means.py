"""What ranks report in a training loop, averaged without waiting: local steps, hosts, uneven shards, checkpoints."""

from __future__ import annotations

import pytest
import torch

import pushsum_opt as ps
from pushsum_opt.algorithms import DiLoCo, PeriodicAverage

pytestmark = pytest.mark.filterwarnings("ignore::pushsum_opt.graphs.speed.SlowMixingWarning")


def wrapped(comm, **options):
    model = torch.nn.Linear(2, 1)
    return ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.01), model, comm=comm, **options)


def step(optimizer, value):
    optimizer.zero_grad()
    loss = value * optimizer.model(torch.ones(1, 2)).square().sum()
    loss.backward()
    optimizer.report(loss=torch.tensor([value], requires_grad=True))
    optimizer.step()


OPTIONS = {
    "synchronous": {},
    "overlapped": {"staleness": 1},
    "local steps": {"gossip_every": 3},
    "exact averages": {"algorithm": lambda: PeriodicAverage(4), "graph": ps.graphs.Ring()},
    "exact averages at the ends of windows": {"algorithm": lambda: PeriodicAverage(1)},
    "outer steps of all": {"algorithm": lambda: DiLoCo(3)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("lanes", [1, 2])
def test_the_mean_is_over_all_ranks_of_all_hosts(options, lanes):
    def rank(comm):
        given = {name: value() if callable(value) else value for name, value in options.items()}
        within = {} if lanes == 1 else {"within_host": "gradients"}
        with wrapped(comm, **given, **within) as optimizer:
            for _ in range(24):
                step(optimizer, float(comm.rank))
            return optimizer.means()["loss"]

    assert ps.testing.run(4, rank, local_size=lanes) == pytest.approx([1.5] * 4, rel=1e-12)


def test_the_live_consensus_distance_is_that_of_whole_models_whose_parts_travel_on_lanes():
    def rank(comm):
        random = torch.Generator().manual_seed(comm.rank // 2)
        model = torch.nn.Linear(60, 40)
        points = [torch.randn(p.shape, generator=random) for p in model.parameters()]
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        with ps.PushSumOptimizer(inner, model, within_host="gradients", graph=ps.graphs.Ring(), comm=comm) as optimizer:
            for _ in range(80):
                optimizer.zero_grad()
                sum((p - q).square().sum() for p, q in zip(model.parameters(), points, strict=True)).backward()
                optimizer.step()
                optimizer.means()
            return optimizer.means()["consensus_distance"], ps.consensus_distance(optimizer)

    for live, exact in ps.testing.run(8, rank, local_size=2):
        assert live == pytest.approx(exact, rel=0.35)


def test_a_rank_that_has_left_a_join_block_counts_with_its_last_value():
    def rank(comm):
        with wrapped(comm) as optimizer:
            with optimizer.join():
                for k in range(10 + 10 * comm.rank):
                    step(optimizer, float(k))
            ps.barrier(comm=comm)
            for _ in range(8):
                optimizer.gossip()
            return optimizer.means()["loss"]

    assert ps.testing.run(4, rank) == pytest.approx([24.0] * 4, rel=1e-12)  # 9, 19, 29, 39


@pytest.mark.parametrize("tau", [0, 2])
def test_a_run_that_is_resumed_has_the_mean_of_what_is_reported_then(tau, tmp_path):
    def rank(comm, resumes):
        with wrapped(comm, staleness=tau) as optimizer:
            if resumes:
                ps.checkpoint.load(tmp_path, optimizer)
                assert "loss" not in optimizer.means()
            for _ in range(25):
                step(optimizer, comm.rank + 100.0 * resumes)
            found = optimizer.means()["loss"]
            ps.checkpoint.save(tmp_path, optimizer)
            for _ in range(5):
                step(optimizer, comm.rank + 100.0 * resumes)
            return found, optimizer.means()["loss"]

    for resumes in (False, True):
        for found in ps.testing.run(4, lambda comm, resumes=resumes: rank(comm, resumes)):
            assert found == pytest.approx([1.5 + 100.0 * resumes] * 2, rel=1e-12)
