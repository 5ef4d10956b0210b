"""Rank 0's optimizer state reaches the others without its devices, and without what belongs to one rank."""

from __future__ import annotations

import functools
import io
import threading

import pytest
import torch

import pushsum_opt as ps
from pushsum_opt.wrapped import start
from pushsum_opt.wrapped.state_values import for_here, to_send


def adam_state(lr=1e-3):
    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    adam = torch.optim.Adam([p], lr=lr)
    adam.step()
    return adam.state_dict()


def test_a_tensor_goes_to_the_device_of_its_counterpart_and_functions_stay():
    mine = {"param_groups": [{"lr": torch.zeros((), device="meta"), "f": len, "schedule": abs, "device": "here"}]}
    sent = to_send({"param_groups": [{"lr": torch.tensor(3.0), "f": lambda: 0, "only there": lambda: 1}]})
    received = torch.load(io.BytesIO(_saved(sent)), map_location="cpu", weights_only=False)
    (group,) = for_here(received, mine)["param_groups"]
    assert group == {"lr": torch.tensor(3.0), "f": len}
    asked = []

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return torch.device("cpu", 7)

    value = torch.tensor(3.0)
    value.to = lambda device: asked.append(device) or value
    for_here(value, torch.zeros(()).as_subclass(Elsewhere))
    assert asked == [torch.device("cpu", 7)]


def _saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_no_device_travels(monkeypatch):
    """Tensors are taken to the host before they are saved, and loaded onto the host."""
    taken = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: taken.append(tensor) or to_host(tensor))
    start._to_bytes(adam_state(torch.tensor(1e-3)))
    assert len(taken) == 4, "step, two averages and the learning rate"


def test_a_rank_with_another_state_and_a_function_in_its_group_starts_as_rank_0():
    def rank(comm):
        model = torch.nn.Linear(2, 1)
        inner = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1 + comm.rank))
        inner.param_groups[0]["schedule"] = lambda: comm.rank
        if comm.rank == 0:
            model(torch.ones(2)).backward()
            inner.step()
        with ps.PushSumOptimizer(inner, model, comm=comm):
            group = inner.param_groups[0]
            steps = [state["step"].item() for state in inner.state.values()]
            return round(group["lr"].item(), 6), group["schedule"](), steps

    assert ps.testing.run(3, rank) == [(0.1, r, [1.0, 1.0]) for r in range(3)]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda model: model, id="module"),
        pytest.param(lambda model: torch.optim.SGD(model.parameters(), lr=1.0), id="optimizer"),
        pytest.param(lambda model: model.forward, id="method"),
        pytest.param(lambda model: functools.partial(model.forward), id="partial"),
        pytest.param(lambda model: torch.Generator(), id="generator"),
        pytest.param(lambda model: threading.Lock(), id="lock"),
    ],
)
def test_what_is_alive_in_a_group_stays_the_object_that_it_was_while_values_are_rank_0s(make):
    def rank(comm):
        model = torch.nn.Linear(2, 1)
        inner = torch.optim.SGD(model.parameters(), lr=0.1 + comm.rank, momentum=0.9)
        alive = make(model)
        inner.param_groups[0].update(alone=alive, among=[{"it": alive}, comm.rank])
        inner.state[model.weight]["momentum_buffer"] = torch.full_like(model.weight, float(comm.rank))
        with ps.PushSumOptimizer(inner, model, comm=comm) as optimizer:
            optimizer.load_state_dict(optimizer.state_dict())
            group = inner.param_groups[0]
            assert group["alone"] is alive
            assert group["among"][0]["it"] is alive
            return group["lr"], group["among"][1], inner.state[model.weight]["momentum_buffer"].tolist()

    assert ps.testing.run(2, rank) == [(0.1, 0, [[0.0, 0.0]])] * 2
