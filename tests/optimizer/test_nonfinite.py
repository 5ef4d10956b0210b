"""A message that is not finite: refused with its name, or skipped with its mass counted."""

from __future__ import annotations

import logging

import pytest
import torch
from optimizer.common import FIRST_ORDER, KINDS, closure_of, network, ring, star, train, values
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import ClosedError, NonFiniteError

first_order = pytest.mark.parametrize("kind", FIRST_ORDER)
POISONS = [float("nan"), float("inf"), float("-inf")]


@first_order
@pytest.mark.parametrize("poison", POISONS)
def test_raise_names_sender_round_and_parameter_and_refuses_to_go_on(kind, poison):
    told = {}

    def rank(comm):
        model = network()
        wrapped = ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, graph=ring, comm=comm)
        train(wrapped, model, 2, comm.rank)
        if comm.rank == 1:
            with torch.no_grad():
                model[2].bias[1] = poison
        before = model[2].bias.detach().clone()
        try:
            wrapped.gossip()
        except NonFiniteError as error:
            told[comm.rank] = str(error)
            assert torch.isfinite(before).all()
            assert all(torch.isfinite(value).all() for value in values(model)), "it was not merged"
            for call in (wrapped.gossip, wrapped.step):
                with pytest.raises(ClosedError, match="NonFiniteError"):
                    call()
            raise

    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(3, rank, timeout=30)
    assert set(caught.value.errors) == set(told) == {2}
    assert all(part in told[2] for part in ("rank 2:", "of rank 1", "round 2", "2.bias", "nonfinite='skip'"))


@first_order
def test_values_whose_sum_overflows_are_finite_all_the_same(kind):
    def rank(comm):
        model = nn.ParameterList([torch.full((200,), 3e38), torch.full((200,), 6e4, dtype=torch.float16)])
        inner = KINDS[kind](model.parameters(), lr=0.0)
        with ps.PushSumOptimizer(inner, model, graph=ring, comm=comm) as wrapped:
            wrapped.gossip()
            return all(torch.isfinite(p).all() for p in model)

    assert ps.testing.run(2, rank) == [True, True]


@first_order
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("graph", [ring, star])
def test_skip_heals_a_poisoned_rank_and_conserves_mass(kind, poison, dtype, graph, caplog):
    def rank(comm):
        model = network().to(dtype)
        inner = KINDS[kind](model.parameters(), lr=0.0)
        options = {"graph": graph, "data_weight": 1.0 + comm.rank, "nonfinite": "skip", "comm": comm}
        with ps.PushSumOptimizer(inner, model, **options) as wrapped:
            weights, clean = [], []
            for step in range(12):
                if step == 2 and comm.rank == 1:
                    with torch.no_grad():
                        model[0].weight[2, 3] = poison
                        model[2].bias.fill_(poison)
                for parameter in model.parameters():
                    parameter.grad = torch.zeros_like(parameter)
                wrapped.step()
                weights.append(wrapped.push_weight)
                clean.append(all(bool(torch.isfinite(value).all()) for value in values(model)))
            assert wrapped.round == 12
            return weights, clean, wrapped.stats()["chunks_skipped"], ps.consensus_distance(wrapped)

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        results = ps.testing.run(3, rank)
    for together in zip(*[weights for weights, *_ in results], strict=True):
        assert sum(together) == pytest.approx(3, rel=1e-13)
    for r, (_, clean, _, _) in enumerate(results):
        assert clean == [True] * 12, f"rank {r}: healed in the round in which it was poisoned, and infected nobody"
    assert sum(skipped for *_, skipped, _ in results) > 0
    assert any("is not finite" in record.getMessage() for record in caplog.records), "a changed mean is reported"
    start = torch.cat([value.reshape(-1) for value in values(network())]).norm().item()
    assert all(distance < 0.05 * start for *_, distance in results)


def test_skip_changes_only_the_chunks_that_hold_it(monkeypatch):
    """Other parameters are mixed as if nothing had happened."""
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "64")

    def rank(comm):
        model = nn.ParameterList([torch.zeros(64), torch.zeros(64)])
        with ps.PushSumOptimizer(
            torch.optim.SGD(model.parameters(), 0.0), model, graph=ring, nonfinite="skip", comm=comm
        ) as wrapped:
            for parameter in model:
                parameter.data.fill_(2.0 * comm.rank)
            if comm.rank == 0:
                model[0].data[3] = float("nan")
            wrapped.gossip()
            return model[0].tolist(), model[1].unique().tolist()

    results = ps.testing.run(3, rank)
    assert [rest for _, rest in results] == [[2.0], [1.0], [3.0]]
    poisoned = results[1][0]
    assert poisoned[3] == 2.0, "kept"
    assert poisoned[16:] == [1.0] * 48, "merged"
    healed = results[0][0]
    assert healed[3] == 4.0, "taken from the in-peer"
    assert healed[4:] == [2.0] * 60


@first_order
def test_skip_changes_nothing_while_all_is_finite(kind):
    def rank(comm, nonfinite):
        model = network()
        options = {"graph": star, "nonfinite": nonfinite, "comm": comm}
        with ps.PushSumOptimizer(KINDS[kind](model.parameters()), model, **options) as wrapped:
            for step in range(4):
                wrapped.step(closure_of(model, step, comm.rank))
            return [value.tolist() for value in values(model)]

    assert ps.testing.run(3, lambda comm: rank(comm, "skip")) == ps.testing.run(3, lambda comm: rank(comm, "raise"))
