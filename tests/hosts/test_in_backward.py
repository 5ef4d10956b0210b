"""Gradients are the host's once backward() has returned, however a script calls it; a rank that is apart is named."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import ConfigurationError
from pushsum_opt.hosts import gradients as room
from pushsum_opt.testing import RankErrors


def wrapped(comm, parameters, **options):
    inner = torch.optim.SGD(parameters, lr=1.0)
    return ps.PushSumOptimizer(inner, **{"within_host": "gradients", "comm": comm, **options})


def of(rank):
    """A gradient that tells the ranks apart; the mean over ranks 0 and 1 is 2.0."""
    return 1.0 + 2.0 * rank


def test_accumulation_averages_the_sum_with_and_without_no_sync_and_by_synchronize():
    def rank(comm):
        z = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        seen = []
        with wrapped(comm, [z]) as optimizer:
            for quiet in ([], [0], [0, 1], [0, 1, 2], [2]):
                optimizer.zero_grad()
                for part in range(3):
                    with optimizer.no_sync() if part in quiet else torch.enable_grad():
                        (z * of(comm.rank)).sum().backward()
                optimizer.synchronize()
                seen.append(z.grad.item())
                z.grad.clamp_(max=0.5 + comm.rank)  # each its own: seen where it is averaged once more
                optimizer.synchronize()
                assert z.grad.item() == 0.5 + comm.rank
                z.grad.fill_(0.5)
                before = z.item()
                optimizer.step()
                assert z.item() == before - 0.5
            z.grad = torch.tensor([of(comm.rank)], dtype=torch.float64)  # made by hand: step() averages it
            before = z.item()
            optimizer.step()
            seen.append(before - z.item())
        return seen

    assert ps.testing.run(2, rank) == [[6.0] * 5 + [2.0]] * 2


def test_a_rank_whose_batch_reaches_no_parameter_takes_what_the_others_made_of_their_gradients():
    def rank(comm):
        z = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        with wrapped(comm, [z], data_weight=1.0 + comm.rank) as optimizer:
            for k in range(3):
                optimizer.zero_grad()
                if comm.rank != k:
                    (z * (3.0 + comm.rank)).sum().backward()
                nn.utils.clip_grad_norm_([z], 0.5)
                optimizer.step()
        return z.tolist()

    for found in ps.testing.run(3, rank):
        assert found == pytest.approx([-1.5 / 2**0.5] * 2, rel=1e-5)


def test_line_searches_see_one_loss_so_that_all_ranks_of_a_host_search_alike():
    def rank(comm):
        z = nn.Parameter(torch.full((2,), 3.0, dtype=torch.float64))
        inner = torch.optim.LBFGS([z], lr=1.0, max_iter=8, line_search_fn="strong_wolfe")
        calls = []

        def closure():
            inner.zero_grad()
            loss = ((z - comm.rank) ** 4).sum() * (1 + 20 * comm.rank)
            loss.backward()
            calls.append(loss.item())
            return loss

        with ps.PushSumOptimizer(inner, within_host="gradients", comm=comm) as optimizer:
            loss = optimizer.step(closure)
        return len(calls), z.tolist(), float(loss)

    first, second = ps.testing.run(2, rank, timeout=60)
    assert first == second


def test_optimizers_that_share_a_backward_average_in_one_order():
    """The ranks reach the parameters in different orders; each optimizer has a communicator of its own."""

    def rank(comm):
        y, z = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
        with wrapped(comm, [y]) as one, wrapped(comm, [z]) as other:
            first, second = (y, z) if comm.rank else (z, y)
            ((first * of(comm.rank)).exp() * 0 + first * of(comm.rank) + second * 2.0).sum().backward()
            one.step()
            other.step()
        return y.item(), z.item()

    found = ps.testing.run(2, rank, timeout=60)
    assert found[0] == found[1]


def test_what_travels_is_exact_for_half_and_complex_gradients_and_unequal_data_weights():
    def rank(comm):
        half = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        with wrapped(comm, [half, phase], data_weight=1.0 + 2.0 * comm.rank):
            (half * comm.rank).sum().backward()
            phase.grad = torch.full_like(phase, 4j * comm.rank)
            (phase.real * 0).sum().backward()
            return half.grad.tolist(), phase.grad.tolist()

    for found in ps.testing.run(2, rank):
        assert found == ([0.75] * 3, [3j] * 3)


def in_no_sync(optimizer, z, rank):
    with optimizer.no_sync() if rank else nullcontext():
        (z * 1.0).sum().backward()
    optimizer.step()


APART = {
    "one has no more batches and ends": (
        lambda o, z, r: r or (z * 1.0).sum().backward(),
        r"rank 0 is in backward\(\), rank 1 is in close\(\)",
    ),
    "one leaves a step out": (
        lambda o, z, r: o.gossip() if r else o.step(),
        r"rank 0 is in step\(\), rank 1 is in gossip\(\)",
    ),
    "one calls backward more often": (
        lambda o, z, r: ([(z * 1.0).sum().backward() for _ in range(2 - r)], o.step()),
        r"rank 0 is in backward\(\) after 1 times backward\(\), rank 1 is in step\(\) after 1 times",
    ),
    "one synchronizes": (
        lambda o, z, r: (o.synchronize() if r else None, o.step()),
        r"rank 0 is in step\(\), rank 1 is in synchronize\(\)",
    ),
    "one is in no_sync": (
        lambda o, z, r: in_no_sync(o, z, r),
        r"rank 0 is in backward\(\), rank 1 is in step\(\) after 1",
    ),
}


@pytest.mark.parametrize(("do", "message"), APART.values(), ids=list(APART))
def test_ranks_that_are_apart_are_named_and_nobody_waits(do, message):
    def rank(comm):
        z = nn.Parameter(torch.zeros(2))
        with wrapped(comm, [z]) as optimizer:
            do(optimizer, z, comm.rank)

    with pytest.raises(RankErrors, match=message):
        ps.testing.run(2, rank, timeout=60)


def test_a_rank_that_makes_no_backward_is_named_when_the_time_is_up():
    def rank(comm):
        z = nn.Parameter(torch.zeros(2))
        kept = wrapped(comm, [z], timeout=30.0)
        kept.push_sum.member.place.host.channel._waiter._timeout = 0.5  # of the wait, not of construction
        if comm.rank != 2:
            (z * 1.0).sum().backward()
        return kept

    with pytest.raises(RankErrors, match=r"rank 2 of the job, to meet the backward\(\) of rank [01]"):
        ps.testing.run(3, rank, timeout=60)


def test_different_scales_and_sparse_gradients_are_refused_on_every_rank():
    def scales(comm):
        z = nn.Parameter(torch.zeros(2))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (1 + comm.rank))
        with wrapped(comm, [z]) as optimizer:
            scaler.scale((z * 1.0).sum()).backward()
            scaler.step(optimizer)

    with pytest.raises(RankErrors, match="2 on rank 0, 4 on rank 1") as raised:
        ps.testing.run(2, scales)
    assert {type(error) for error in raised.value.errors.values()} == {ConfigurationError}

    def sparse(comm):
        table = nn.Embedding(4, 2, sparse=comm.rank == 1)
        wrapped(comm, table.parameters())
        table(torch.tensor([1])).sum().backward()

    with pytest.raises(RankErrors, match="gradient on rank 1 is sparse") as raised:
        ps.testing.run(2, sparse)
    assert len(raised.value.errors) == 2


def test_parameters_that_thaw_or_come_later_are_averaged_in_backward_and_closing_ends_it():
    def rank(comm):
        y, z, late = (nn.Parameter(torch.zeros(1)) for _ in range(3))
        z.requires_grad_(False)
        model = nn.ParameterList([y, z, late])
        with wrapped(comm, [y, z]) as optimizer:
            assert not z.requires_grad
            z.requires_grad_(True)
            optimizer.add_param_group({"params": [late]})
            (of(comm.rank) * (y + z + late)).sum().backward()
            found = [p.grad.item() for p in model]
            twin = copy.deepcopy(model)
            if comm.rank == 0:
                sum(p.sum() for p in twin).backward()  # a copy is nobody's
            optimizer.step()
        if comm.rank == 0:
            (y * 1.0).sum().backward()
        return found

    assert ps.testing.run(2, rank) == [[2.0] * 3] * 2


def test_a_device_is_copied_from_and_to_once_however_many_tensors_there_are(monkeypatch):
    """Without a device: host memory that says that it is none, and the copies to and from what stands for the host."""
    copies = []

    class Device(torch.Tensor):
        """Stands for memory of a device; ``is_cpu`` is what the room looks at."""

        is_cpu = False

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            result = super().__torch_function__(function, types, args, kwargs or {})
            if function is torch.Tensor.copy_ and sum(isinstance(a, Device) for a in args[:2]) == 1:
                copies.append(args[0].numel())
            return result

    summed = []
    monkeypatch.setattr(room.GradientAverage, "_sum", lambda self, flat, round: summed.append(type(flat)))
    monkeypatch.setattr(
        room.GradientAverage, "_host_buffer", lambda self, flat: torch.empty(flat.numel(), dtype=torch.float32)
    )
    parameters = [nn.Parameter(torch.zeros(3, 2)) for _ in range(161)]
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.full((3, 2), float(index))
    runs = [[p.grad.as_subclass(Device) for p in parameters]]
    monkeypatch.setattr(room, "_runs", lambda parameters: runs)
    monkeypatch.setattr(room, "_scatter", lambda flat, run: None)
    room.GradientAverage(None)(parameters, 0, 0.5, False)
    assert copies == [161 * 6] * 2
    assert summed == [torch.Tensor]
