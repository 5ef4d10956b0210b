"""Several ranks per host as one participant, against a run with one rank per host on the mean of the gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from optimizer.common import batch, bits, network, values
from support.scenarios import shift
from torch import nn

import pushsum_opt as ps
from pushsum_opt.algorithms import DiLoCo, NoLoCo, PeriodicAverage, SlowMomentum
from pushsum_opt.errors import ConfigurationError
from pushsum_opt.gossip.wire import HEADER_BYTES
from pushsum_opt.testing import RankErrors

STEPS = 7


class Mixed(nn.Module):
    """Large and small, float64, bf16, complex and transposed parameters, and one that not every rank uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network().double()
        self.large = nn.Parameter(torch.linspace(-1, 1, 50_000, dtype=torch.float64))
        self.narrow = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).to(torch.bfloat16))
        self.strided = nn.Parameter(torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)[:, ::2])
        self.phase = nn.Parameter(torch.linspace(-1, 1, 4).to(torch.complex64))
        self.sometimes = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.never = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def loss(self, k: int, rank: int) -> torch.Tensor:
        inputs, targets = batch(k, rank)
        loss = (self.body(inputs.double()) - targets).square().mean()
        loss = loss + (self.large - rank).square().mean() + (self.narrow.double() - 0.1 * rank).square().mean()
        loss = loss + (self.strided + rank).square().mean() + self.phase.abs().square().mean()
        return loss + (self.sometimes - rank).square().mean() if (rank + k) % 2 else loss


def made(options):
    """Return options with an algorithm of its own for each rank."""
    return {"graph": shift, **{name: value() if callable(value) else value for name, value in options.items()}}


def one_per_host(hosts, lanes, weights, given):
    """The reference: a rank per host, its gradients the weighted mean of those of the host's ranks."""

    def rank(comm):
        options = made(given)
        model = Mixed()
        inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        mine = weights[comm.rank * lanes : (comm.rank + 1) * lanes]
        with ps.PushSumOptimizer(inner, model, data_weight=sum(mine), comm=comm, **options) as optimizer:
            for k in range(STEPS):
                optimizer.zero_grad()
                for lane, weight in enumerate(mine):
                    (model.loss(k, comm.rank * lanes + lane) * weight / sum(mine)).backward()
                optimizer.step()
            before = optimizer.push_weight, ps.consensus_distance(optimizer)
            with optimizer.averaged():
                mean = values(model)
            optimizer.drain()
            return values(model), mean, before

    return ps.testing.run(hosts, rank)


def several_per_host(hosts, lanes, weights, given):
    def rank(comm):
        model = Mixed()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += comm.rank  # the start gives everyone rank 0's
        inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        options_here = {"within_host": "gradients", "data_weight": weights[comm.rank], "comm": comm, **made(given)}
        with ps.PushSumOptimizer(inner, model, **options_here) as optimizer:
            for k in range(STEPS):
                optimizer.zero_grad()
                model.loss(k, comm.rank).backward()
                optimizer.step()
            before = optimizer.push_weight, ps.consensus_distance(optimizer)
            kept = bits(values(model))
            with optimizer.averaged():
                mean = values(model)
            assert bits(values(model)) == kept
            optimizer.drain()
            return values(model), mean, before

    return ps.testing.run(hosts * lanes, rank, local_size=lanes)


OPTIONS = {
    "synchronous": {},
    "staleness 1": {"staleness": 1},
    "staleness 2": {"staleness": 2},
    "local steps": {"gossip_every": 3},
    "exact averages": {"algorithm": lambda: PeriodicAverage(3)},
    "slow momentum": {"algorithm": lambda: SlowMomentum(3), "staleness": 1},
    "outer steps of pairs": {"algorithm": lambda: NoLoCo(3)},
    "outer steps of all": {"algorithm": lambda: DiLoCo(3)},
    "rounded on the wire": {"wire_dtype": "float32"},
    "in eight bits": {"wire_dtype": "int8", "staleness": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize(("hosts", "lanes"), [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_hosts_are_participants_on_the_mean_gradient(hosts, lanes, options):
    weights = [1.0 + (3 * rank) % 4 for rank in range(hosts * lanes)]

    expected = one_per_host(hosts, lanes, weights, options)
    found = several_per_host(hosts, lanes, weights, options)
    for rank, (tensors, mean, (weight, distance)) in enumerate(found):
        reference, reference_mean, (its_weight, its_distance) = expected[rank // lanes]
        # Sums in another order: what is rounded to float32 or bf16 may differ in the last place. Lanes cut the tensors
        # into other pieces: in eight bits, into other blocks.
        for mine, its in (*zip(tensors, reference, strict=True), *zip(mean, reference_mean, strict=True)):
            fine = 1e-5 if options.get("wire_dtype") == "int8" else 1e-6
            rtol = 1e-2 if mine.dtype == torch.bfloat16 else fine
            torch.testing.assert_close(mine, its, rtol=rtol, atol=rtol)
        assert weight == its_weight
        assert distance == pytest.approx(its_distance, rel=1e-3, abs=1e-5)
        assert bits(tensors) == bits(found[rank - rank % lanes][0]), "ranks of a host hold the same bits"


@pytest.mark.parametrize("staleness", [0, 1])
def test_every_rank_sends_its_part_of_the_model_to_another_host(staleness):
    def rank(comm):
        z = nn.Parameter(torch.zeros(100_003))
        small = [nn.Parameter(torch.zeros(11)) for _ in range(20)]
        inner = torch.optim.SGD([z, *small], lr=0.1)
        options = {"within_host": "gradients", "staleness": staleness, "comm": comm}
        with ps.PushSumOptimizer(inner, **options) as optimizer:
            optimizer.gossip()
            return optimizer.stats()["bytes_sent"]

    sent = ps.testing.run(8, rank, local_size=4)
    whole = 4 * (100_003 + 220)
    assert sum(sent) < 2 * whole + 8 * HEADER_BYTES + 100, "each of 2 hosts sends its model once, and headers"
    assert max(sent) < 1.2 * whole / 4, "spread evenly over the ranks"


def test_an_inf_on_one_rank_skips_the_update_of_its_whole_host_and_no_round():
    def rank(comm):
        model = nn.Linear(3, 1)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0 * (1 + comm.rank // 2))
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        with ps.PushSumOptimizer(inner, model, graph=ps.graphs.Ring(), within_host="gradients", comm=comm) as optimizer:
            start = copy.deepcopy(values(model))
            loss = model(torch.full((2, 3), 1.0 + comm.rank)).sum()
            scaler.scale(loss).backward()
            if comm.rank == 1:
                model.weight.grad[0, 0] = float("inf")
            optimizer._gossip_round = lambda: None  # the local step alone
            scaler.step(optimizer)
            scaler.update()
            moved = not all(map(torch.equal, start, values(model)))
            return moved, model.weight.detach() - start[0]

    (first, _), (second, _), (third, step), (fourth, same) = ps.testing.run(4, rank, local_size=2)
    assert (first, second, third, fourth) == (False, False, True, True)
    expected = -0.1 * 2 * (3.0 + 4.0) / 2  # whatever the scale is
    torch.testing.assert_close(step, torch.full((1, 3), expected))
    torch.testing.assert_close(same, step)


def test_closures_average_every_gradient_that_they_make():
    def rank(comm):
        z = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        inner = torch.optim.LBFGS([z], lr=1.0, max_iter=4)

        def closure():
            inner.zero_grad()
            loss = (z - torch.tensor([comm.rank, 1.0], dtype=torch.float64)).square().sum()
            loss.backward()
            return loss

        with ps.PushSumOptimizer(inner, within_host="gradients", comm=comm) as optimizer:
            optimizer.step(closure)
        return z.detach().tolist()

    for found in ps.testing.run(3, rank, local_size=3):
        assert found == pytest.approx([1.0, 1.0])


def test_buffers_are_averaged_over_all_ranks_by_their_data_weights():
    def rank(comm):
        model = nn.BatchNorm1d(2)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"within_host": "gradients", "data_weight": 1.0 + comm.rank, "comm": comm}
        with ps.PushSumOptimizer(inner, model, **options) as optimizer:
            model.running_mean.fill_(comm.rank)
            with optimizer.averaged():
                mean = model.running_mean[0].item()
            return mean, ps.average(float(comm.rank), comm=comm)

    expected = sum(rank * (rank + 1) for rank in range(6)) / sum(rank + 1 for rank in range(6))
    for mean, averaged in ps.testing.run(6, rank, local_size=2):
        assert mean == pytest.approx(expected, rel=1e-6)
        assert averaged == pytest.approx(expected, rel=1e-12)


def test_one_ranks_error_ends_its_host_and_the_others():
    def rank(comm):
        z = nn.Parameter(torch.zeros(5))
        optimizer = ps.PushSumOptimizer(torch.optim.SGD([z], lr=0.1), within_host="gradients", comm=comm)
        for k in range(5):
            if comm.rank == 3 and k == 2:
                raise OSError("no more data")
            z.grad = torch.ones_like(z)
            optimizer.step()

    with pytest.raises(RankErrors, match="no more data"):
        ps.testing.run(6, rank, local_size=2, timeout=60)


def test_what_cannot_be_done_is_refused_on_every_rank():
    def refused(options, message, size=4, local_size=2, sparse=False):
        def rank(comm):
            embedding = nn.Embedding(4, 2, sparse=sparse)
            inner = torch.optim.SGD(embedding.parameters(), lr=0.1)
            with pytest.raises(ConfigurationError, match=message):
                optimizer = ps.PushSumOptimizer(inner, within_host="gradients", comm=comm, **options)
                if sparse:
                    embedding(torch.tensor([1])).sum().backward()
                    optimizer.step()
                else:
                    optimizer.join().__enter__()

        ps.testing.run(size, rank, local_size=local_size, timeout=60)

    refused({"staleness": "unbounded"}, "lanes of a host")
    refused({}, "same number of ranks on every host.*got 2, 1", size=3)
    refused({}, "averages? their gradients in every step")
    refused({"data_weight": -1.0}, r"data_weight=-1\.0")
    refused({}, r"sparse", size=2, sparse=True)


def test_numpy_ranks_can_be_lanes_too():
    """PushSum itself takes hosts, without torch."""
    from pushsum_opt.hosts import Hosts

    def rank(comm):
        hosts = Hosts(comm, data_weight=1.0, sharded=False, timeout=30.0)
        z = np.full(70_000, float(comm.rank // 2))
        small = np.full(3, float(comm.rank // 2), dtype=np.float32)
        with ps.PushSum([z, small], comm=hosts.gossip_comm, host=hosts) as push_sum:
            for _ in range(2):
                push_sum.mix()
        return z.min(), z.max(), small.min(), small.max()

    assert ps.testing.run(8, rank, local_size=2) == [(1.5, 1.5, 1.5, 1.5)] * 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 10, 16_384, 50_001])
@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
def test_sums_inside_a_host_have_equal_bits_on_every_rank(lanes, count, dtype):
    """Small ones are left to MPI, large ones are summed in parts."""
    from pushsum_opt.hosts import Hosts

    def rank(comm):
        hosts = Hosts(comm, data_weight=1.0, sharded=False, timeout=30.0)
        values = np.random.default_rng(comm.rank).normal(size=count).astype(dtype)
        hosts.sum(values, 0, "a sum")
        return values

    found = ps.testing.run(2 * lanes, rank, local_size=lanes, seed=1)
    for host in (0, lanes):
        ours = [np.random.default_rng(host + lane).normal(size=count).astype(dtype) for lane in range(lanes)]
        np.testing.assert_allclose(found[host], np.sum(ours, axis=0, dtype=np.float64), rtol=1e-4, atol=1e-5)
        assert all(np.array_equal(found[host], found[host + lane]) for lane in range(lanes))
