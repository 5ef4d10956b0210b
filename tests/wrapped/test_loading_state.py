"""State that torch's load_state_dict would take apart comes back as it was: at the start, and from a checkpoint."""

from __future__ import annotations

import collections
import enum

import numpy as np
import pytest
import torch
from torch import nn

import pushsum_opt as ps
from pushsum_opt.errors import CheckpointError

Pair = collections.namedtuple("Pair", "mean count")
Flags = enum.IntFlag("Flags", "A B C")

VALUES = {
    "string": lambda n: f"slow {n}",
    "strings": lambda n: ["slow", {"kind": f"fast {n}"}, ("a", "b")],
    "set of strings": lambda n: {"a", f"b{n}"},
    "array": lambda n: np.arange(3) * n,
    "range": lambda n: range(n),
    "named tuple": lambda n: Pair(torch.full((2,), float(n)), n),
    "flags": lambda n: Flags.A | Flags.C if n else Flags.B,
    "deque": lambda n: collections.deque([torch.full((2,), float(n)), 1], maxlen=3),
    "ordered": lambda n: collections.OrderedDict(b=n, a=torch.full((2,), float(n))),
    "with a factory": lambda n: collections.defaultdict(list, a=[n]),
    "memory format": lambda n: torch.channels_last,
    "on meta": lambda n: torch.empty(3, device="meta"),
    "subclass of str": lambda n: type("Local", (str,), {})("x"),  # does not pickle: each rank keeps its own
}


class Odd(torch.optim.SGD):
    def __init__(self, params, make, number):
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].update(odd=make(number), number=torch.full((1,), float(number)))


def described(value):
    value = sorted(value) if isinstance(value, set) else value
    return f"{type(value).__name__} {getattr(value, 'maxlen', '')} {value!r}"


@pytest.mark.parametrize("kind", VALUES)
def test_state_of_any_type_is_rank_0s_at_the_start_and_comes_back_from_a_checkpoint(kind, tmp_path):
    def rank(comm):
        model = nn.Linear(2, 1)
        inner = Odd(model.parameters(), VALUES[kind], comm.rank + 1)
        with ps.PushSumOptimizer(inner, model, comm=comm) as optimizer:
            found = [described(inner.state[model.weight]["odd"])]
            assert inner.state[model.weight]["number"] == 1.0
            if kind != "subclass of str":
                ps.checkpoint.save(tmp_path, optimizer)
                inner.state[model.weight]["odd"] = None
                ps.checkpoint.load(tmp_path, optimizer)
            return [*found, described(inner.state[model.weight]["odd"])]

    expected = described(VALUES[kind](1))
    assert ps.testing.run(2, rank) == [[expected, expected]] * 2


def test_a_load_state_dict_of_the_users_own_gets_the_values_as_they_are():
    seen = []

    class Own(Odd):
        def load_state_dict(self, state_dict):
            seen.append(state_dict["state"][0]["odd"])

    model = nn.Linear(2, 1)
    with ps.PushSumOptimizer(Own(model.parameters(), VALUES["string"], 1), model) as optimizer:
        optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["slow 1"]


def test_a_state_dict_that_is_no_dict_is_named():
    class Listed(torch.optim.SGD):
        def state_dict(self):
            return [super().state_dict()]

    model = nn.Linear(2, 1)
    with ps.PushSumOptimizer(Listed(model.parameters(), lr=0.1), model) as optimizer:
        with pytest.raises(TypeError, match=r"rank 0: Listed.state_dict\(\) returned a list: expected a dict"):
            optimizer.state_dict()
        with pytest.raises(CheckpointError, match=r"Listed.state_dict\(\) returned a list"):
            ps.checkpoint.save("unused", optimizer)
