"""Broadcasts copy what the root holds, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer.common import Varied, bits, flat, held, network

import pushsum_opt as ps
from pushsum_opt.errors import ConfigurationError


@pytest.mark.parametrize("root", [0, 2])
@pytest.mark.parametrize("form", ["module", "state_dict"])
def test_broadcast_parameters_copies_the_roots_parameters_and_buffers_bit_for_bit(root, form):
    def rank(comm):
        model = Varied()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.copy_(torch.full(tensor.shape, comm.rank + 1))
            model.wide[0] = float("nan")
        places = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
        strides = [tensor.stride() for tensor in model.parameters()]
        ps.broadcast_parameters(model if form == "module" else model.state_dict(), root=root, comm=comm)
        assert places == [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())], "in place"
        assert strides == [tensor.stride() for tensor in model.parameters()]
        found = held(model)
        if form == "state_dict":
            assert (found.pop("hidden") == comm.rank + 1).all(), "not part of a state_dict"
        return {name: bits([tensor]) for name, tensor in found.items()}

    results = ps.testing.run(3, rank)
    assert results[0] == results[1] == results[2]
    assert results[0]["scalar"] == bits([torch.tensor(root + 1.0)])


def test_broadcast_object_gives_everyone_the_roots_object():
    class_of = {"seed": 3, "list": [1, (2, None)], "tensor": torch.arange(3), "bytes": b"x" * 100_000}

    def rank(comm):
        mine = copy.deepcopy(class_of) if comm.rank == 1 else {"not": "this"}
        found = ps.broadcast_object(mine, root=1, comm=comm)
        assert flat(found) == flat(class_of)
        assert (found is mine) == (comm.rank == 1)
        assert ps.broadcast_object(None if comm.rank == 0 else 5, comm=comm) is None
        return True

    assert ps.testing.run(3, rank) == [True] * 3


@pytest.mark.parametrize("root", [3, -1, 1.0])
@pytest.mark.parametrize("what", ["object", "parameters"])
def test_a_root_that_is_no_rank_is_refused_with_its_value(root, what):
    def rank(comm):
        if what == "object":
            ps.broadcast_object(1, root=root, comm=comm)
        else:
            ps.broadcast_parameters(network(), root=root, comm=comm)

    with pytest.raises(ps.testing.RankErrors, match=f"root={root}") as caught:
        ps.testing.run(3, rank)
    assert all(isinstance(error, ConfigurationError) for error in caught.value.errors.values())
