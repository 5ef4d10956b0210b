"""averaged_state_dict(): what is saved stays what it is; and a state_dict that outlives averaged() is warned of."""

from __future__ import annotations

import logging

import pytest
import torch
from optimizer.common import bits, flat, star, train
from torch import nn

import pushsum_opt as ps


class Model(nn.Module):
    """A tied weight, averaged and integer buffers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        self.tied = self.body[2].weight
        generator = torch.Generator().manual_seed(4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, inputs):
        return self.body(inputs)


def trained(comm, staleness=0, model=None, steps=4):
    model = Model() if model is None else model
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    optimizer = ps.PushSumOptimizer(inner, model, comm=comm, graph=star, staleness=staleness)
    train(optimizer, model, steps, comm.rank)
    return model, optimizer


@pytest.mark.parametrize("staleness", [0, 2, "unbounded"])
@pytest.mark.parametrize("rank", [0, 1, None])
def test_one_rank_gets_copies_of_what_averaged_shows_and_keeps_its_own(staleness, rank):
    def one(comm):
        model, optimizer = trained(comm, staleness)
        optimizer.drain()
        before = bits([*model.parameters(), *model.buffers()])
        state = optimizer.averaged_state_dict(rank=rank)
        assert bits([*model.parameters(), *model.buffers()]) == before
        with optimizer.averaged():
            shown = flat(dict(model.state_dict()))
        train(optimizer, model, 1, comm.rank, start=4)
        optimizer.close()
        return None if state is None else (flat(dict(state)), shown, state)

    results = ps.testing.run(3, one)
    for number, found in enumerate(results):
        assert (found is not None) == (rank is None or number == rank)
        if found is not None:
            assert found[0] == found[1]
            assert found[2]["tied"] is found[2]["body.2.weight"]
            Model().load_state_dict(found[2])


def test_the_trajectory_is_not_changed():
    def one(comm, calls):
        model, optimizer = trained(comm, 2)
        if calls:
            optimizer.averaged_state_dict()
        train(optimizer, model, 4, comm.rank, start=4)
        optimizer.close()
        return bits([*model.parameters(), *model.buffers()])

    assert ps.testing.run(3, lambda c: one(c, True)) == ps.testing.run(3, lambda c: one(c, False))


def test_without_a_model_it_has_the_parameters_by_name():
    def one(comm):
        p = nn.Parameter(torch.full((2,), float(comm.rank)))
        optimizer = ps.PushSumOptimizer(torch.optim.SGD([p], lr=1.0), comm=comm)
        p.data.fill_(float(comm.rank))
        state = optimizer.averaged_state_dict()
        optimizer.close()
        return state

    first, second = ps.testing.run(2, one)
    assert {name: value.tolist() for name, value in first.items()} == {"group 0 parameter 0": [0.5, 0.5]}
    assert second is None


def test_buffers_without_strides_and_parameters_without_a_shape_are_in_it():
    def rank(comm):
        model = nn.Sequential(nn.Linear(2, 1), nn.LazyLinear(3))
        model.register_buffer("packed", torch.arange(4.0).to_mkldnn())
        with ps.PushSumOptimizer(torch.optim.SGD(model[0].parameters(), lr=0.1), model, comm=comm) as optimizer:
            return model, optimizer.averaged_state_dict()

    ((model, state),) = ps.testing.run(1, rank)
    assert state.keys() == model.state_dict().keys()
    assert state["packed"].to_dense().tolist() == [0.0, 1.0, 2.0, 3.0]
    assert state["1.weight"] is model[1].weight


@pytest.mark.parametrize("rank", [-1, 2, True, "0"])
def test_the_rank_is_checked(rank):
    with pytest.raises(ps.testing.RankErrors, match=r"ConfigurationError: rank 0: rank=.*expected a rank, 0 to 1"):
        ps.testing.run(2, lambda comm: trained(comm, steps=0)[1].averaged_state_dict(rank=rank))


@pytest.mark.parametrize("kept", [True, False])
def test_a_state_dict_that_outlives_averaged_is_warned_of(kept, caplog, tmp_path):
    def one(comm):
        model, optimizer = trained(comm, steps=1)
        held = []
        with optimizer.averaged():
            torch.save(model.state_dict(), tmp_path / f"{comm.rank}.pt")
            if kept and comm.rank == 0:
                held.append({"model": model.state_dict()})
        held.append(optimizer.averaged_state_dict(None))
        optimizer.close()

    with caplog.at_level(logging.WARNING, "pushsum_opt"):
        ps.testing.run(2, one)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == kept
    assert not kept or ("rank 0" in lines[0] and "averaged_state_dict()" in lines[0])
