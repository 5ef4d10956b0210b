"""Ranks that share a host, under mpirun: the library's own averaging, torch's DDP and FSDP2 inside the host."""

from __future__ import annotations

import copy

import pytest
import torch
from mpi.launch import fault_tolerant, launcher, succeeds
from torch import nn

import pushsum_opt as ps

HOSTS, LANES = 2, 2


def reference():
    """One rank per host on loopback, on the mean loss of the host's ranks: (own, mean, weight) of every host."""

    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(6, 3000), nn.Tanh(), nn.Linear(3000, 2)).double()

    def rank(comm):
        model = copy.deepcopy(start)
        inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with ps.PushSumOptimizer(inner, model, staleness=1, comm=comm) as optimizer:
            for k in range(8):
                optimizer.zero_grad()
                for lane in range(LANES):
                    generator = torch.Generator().manual_seed(100 * (comm.rank * LANES + lane) + k)
                    inputs = torch.randn(8, 6, generator=generator, dtype=torch.float64)
                    targets = torch.randn(8, 2, generator=generator, dtype=torch.float64)
                    ((model(inputs) - targets).square().mean() / LANES).backward()
                optimizer.step()
            own, weight = {n: p.detach().clone() for n, p in model.named_parameters()}, optimizer.push_weight
            with optimizer.averaged():
                mean = {n: p.detach().clone() for n, p in model.named_parameters()}
        return own, mean, weight

    return ps.testing.run(HOSTS, rank)


@pytest.mark.parametrize("how", ["gradients", *(pytest.param(how, marks=pytest.mark.slow) for how in ("ddp", "fsdp"))])
def test_hosts_train_as_participants_on_the_mean_gradient(how, tmp_path):
    succeeds(HOSTS * LANES, "within_host.py", how, str(tmp_path), PUSHSUM_RANKS_PER_HOST=str(LANES))
    expected = reference()
    for rank in range(HOSTS * LANES):
        found = torch.load(tmp_path / f"{rank}.pt")
        own, mean, weight = expected[rank // LANES]
        assert found["weight"] == weight
        for name in own:
            torch.testing.assert_close(found["own"][name], own[name], rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(found["mean"][name], mean[name], rtol=1e-12, atol=1e-13)
        assert found["sent"] < 1.2 * 8 * (8 * (3000 * 7 + 2 * 3001) / LANES + 100), "a part of the model per rank"


def test_scripts_find_the_hosts_gradients_after_backward_as_under_ddp(tmp_path):
    succeeds(2, "like_ddp.py", str(tmp_path))


@pytest.mark.skipif("--bind-to" not in launcher(), reason="MPICH ends the job when a rank dies")
@pytest.mark.parametrize(("staleness", "where"), [("0", "backward"), ("1", "step")])
def test_a_host_that_loses_a_rank_is_lost_as_a_whole(staleness, where):
    done = fault_tolerant(6, "host_loss.py", staleness, where, limit=100, PUSHSUM_RANKS_PER_HOST=str(LANES))
    assert done.returncode == 0, done.stdout[-5000:]
    assert done.stdout.count("members (0, 1, 4, 5), (2, 3) lost, round 40") == 4, done.stdout[-5000:]
    assert "rank 3 ends, as its host has lost a rank: with within_host a host is lost as a whole" in done.stdout
