"""What one rank alone does to its tensors, or passes: the same named error on every rank, never pasted numbers."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
import torch
from optimizer.common import network
from support.ranks import on_ranks
from torch import nn

import pushsum_opt as ps
from pushsum_opt.collectives import together
from pushsum_opt.errors import (
    CallOrderError,
    ConfigurationError,
    LayoutError,
    MismatchError,
    PeerFailed,
)

STALENESS = (0, 1, "unbounded")


def error_on(comm, call):
    """Return the error of a call that every rank is to end with."""
    with pytest.raises(ps.errors.PushSumError) as caught:
        call()
    return caught.value


# ---------------------------------------------------------------------- the order of names


def in_this_order(comm, tensors):
    return tensors if comm.rank == 0 else dict(reversed(tensors.items()))


def exchange_arrays(comm):
    ps.PushSum(in_this_order(comm, {"a": np.zeros(3), "b": np.ones(3)}), comm=comm)


def wrap_parameters(comm):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    parameters = in_this_order(comm, dict(model.named_parameters()))
    ps.PushSumOptimizer(torch.optim.SGD(parameters.values(), lr=0.1), model, comm=comm)


def add_parameters(comm):
    model = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(3)])
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model[0].parameters(), lr=0.1), model, comm=comm)
    new = in_this_order(comm, {"1": model[1].weight, "2": model[2].weight})
    optimizer.add_param_group({"params": list(new.values())})


def broadcast(comm):
    ps.broadcast_parameters(in_this_order(comm, {"a": torch.zeros(3), "b": torch.ones(3)}), comm=comm)


def average_buffers(comm):
    model = nn.Linear(2, 1)
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)
    for name, value in in_this_order(comm, {"a": torch.zeros(3), "b": torch.ones(3)}).items():
        model.register_buffer(name, value)
    with optimizer.averaged():
        pass


@pytest.mark.parametrize("call", [exchange_arrays, wrap_parameters, add_parameters, broadcast, average_buffers])
@on_ranks(2)
def test_tensors_of_one_form_in_another_order_on_one_rank_are_a_mismatch_that_names_two_of_them(comm, call):
    error = error_on(comm, lambda: call(comm))
    assert isinstance(error, MismatchError)
    assert "their order: number" in str(error)
    assert "on rank 0" in str(error)
    assert "on rank 1" in str(error)


# ---------------------------------------------------------------------- the form of tensors


def enter_averaged(optimizer):
    with optimizer.averaged():
        pass


EXACT = {
    "averaged()": enter_averaged,
    "averaged_state_dict()": lambda optimizer: optimizer.averaged_state_dict(),
    "consensus_distance()": ps.consensus_distance,
    "an exact average": lambda optimizer: optimizer.push_sum.average(),
}


@pytest.mark.parametrize("staleness", STALENESS)
@pytest.mark.parametrize("call", EXACT)
@on_ranks(2)
def test_sums_over_ranks_refuse_strides_that_one_rank_has_changed(comm, call, staleness):
    model = nn.Conv2d(2, 3, 2)
    wrapped = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = ps.PushSumOptimizer(wrapped, model, staleness=staleness, comm=comm)
    if comm.rank == 1:
        model.to(memory_format=torch.channels_last)
    error = error_on(comm, lambda: EXACT[call](optimizer))
    assert isinstance(error, MismatchError)
    assert "strides" in str(error)


@pytest.mark.parametrize("staleness", STALENESS)
@on_ranks(2)
def test_averaged_tells_every_rank_that_one_has_converted_its_model(comm, staleness):
    model = network()
    wrapped = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = ps.PushSumOptimizer(wrapped, model, staleness=staleness, comm=comm)
    if comm.rank == 1:
        model.double()
    error = error_on(comm, lambda: enter_averaged(optimizer))
    assert type(error) is (LayoutError if comm.rank == 1 else PeerFailed)
    assert "rank 1: parameter 0.weight was float32[5, 6] at construction and is float64[5, 6] now" in str(error)


@on_ranks(2)
def test_averaged_refuses_to_count_messages_of_a_form_that_the_parameters_no_longer_have(comm):
    model = nn.Conv2d(2, 3, 2)
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), model, staleness=1, comm=comm)
    optimizer.step()
    model.to(memory_format=torch.channels_last)
    error = error_on(comm, lambda: enter_averaged(optimizer))
    assert "changed their strides while messages of the old form are in flight" in str(error)


@on_ranks(4, local_size=2)
def test_lanes_of_a_host_refuse_strides_that_one_lane_has_changed(comm):
    model = nn.Conv2d(2, 3, 2)
    wrapped = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = ps.PushSumOptimizer(wrapped, model, within_host="gradients", comm=comm)
    if comm.rank % 2 == 1:
        model.to(memory_format=torch.channels_last)

    def step():
        model(torch.ones(1, 2, 4, 4)).sum().backward()
        optimizer.step()

    assert "strides" in str(error_on(comm, step))


@pytest.mark.parametrize("staleness", STALENESS)
@pytest.mark.parametrize("convert", ["half", "channels_last"])
@on_ranks(3)
def test_a_model_that_one_rank_converts_at_its_end_does_not_keep_the_ranks_from_closing(comm, convert, staleness):
    """As rank 0 does that exports what it has trained."""
    model = nn.Conv2d(2, 3, 2)
    wrapped = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = ps.PushSumOptimizer(wrapped, model, staleness=staleness, comm=comm)
    for _ in range(3):
        optimizer.step()
    if comm.rank == 0:
        model.half() if convert == "half" else model.to(memory_format=torch.channels_last)
    before = [p.clone() for p in model.parameters()]
    optimizer.close()
    if comm.rank == 0:
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


# ---------------------------------------------------------------------- values

NOT_NUMBERS = {
    "a list": [1.0, 2.0],
    "a str": "1.0",
    "None": None,
    "a dict": {"loss": 1.0},
    "sparse_coo": torch.eye(2).to_sparse(),
    "on meta": torch.ones(2, device="meta"),
    "object": np.array([1.0, None]),
}


@pytest.mark.parametrize("function", [ps.average, ps.sum])
@pytest.mark.parametrize("named", NOT_NUMBERS)
@on_ranks(2)
def test_what_has_no_sum_is_refused_on_every_rank_with_its_kind_also_where_one_rank_passes_it(comm, function, named):
    everywhere = error_on(comm, lambda: function(NOT_NUMBERS[named], comm=comm))
    assert isinstance(everywhere, ConfigurationError)
    assert named in str(everywhere)
    one = error_on(comm, lambda: function(NOT_NUMBERS[named] if comm.rank else 1.0, comm=comm))
    assert isinstance(one, MismatchError)
    assert named in str(one)
    assert function(2.0, comm=comm) == (2.0 if function is ps.average else 4.0), "the ranks are still together"


@on_ranks(2)
def test_average_of_ints_and_bools_is_not_cut_off(comm):
    counted = ps.average(torch.tensor([comm.rank, 3]), comm=comm)
    assert torch.equal(counted, torch.tensor([0.5, 3.0], dtype=torch.float64))
    assert ps.average(torch.tensor(comm.rank == 0), comm=comm).item() == 0.5
    np.testing.assert_array_equal(ps.average(np.array([comm.rank, 3]), comm=comm), [0.5, 3.0])
    assert ps.average(Decimal(comm.rank), comm=comm) == 0.5


@on_ranks(2)
def test_a_bad_data_weight_root_or_object_on_one_rank_is_the_same_error_on_all(comm):
    calls = {
        "data_weight=nan": lambda: ps.average(1.0, data_weight=float("nan") if comm.rank else 1.0, comm=comm),
        "root is 0 on rank 0, 7 on rank 1": lambda: ps.broadcast_object(1, root=7 * comm.rank, comm=comm),
        "rank 1 cannot be pickled": lambda: ps.allgather((lambda: 0) if comm.rank else 0, comm=comm),
        "rank 0 cannot be pickled": lambda: ps.broadcast_object(lambda: 0, comm=comm),
        "scale": lambda: ps.broadcast_parameters({"scale": 1.0 if comm.rank else torch.ones(1)}, comm=comm),
    }
    for words, call in calls.items():
        assert words in str(error_on(comm, call))
        assert ps.allgather(comm.rank, comm=comm) == [0, 1], "the ranks are still together"


# ---------------------------------------------------------------------- calls that one rank leaves


@pytest.mark.parametrize("block", ["averaged", "join"])
@on_ranks(2)
def test_refused_add_param_group_adds_nothing(comm, block):
    model = network()
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)
    with getattr(optimizer, block)(), pytest.raises(CallOrderError):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 1
    optimizer.step()
    optimizer.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_call_that_one_rank_leaves_half_way_does_not_meet_its_next_one(error):
    """Rank 1 comes back with another value: rank 0, which still waits for the first, must not get it."""

    def rank(comm):
        ps.barrier(comm=comm)
        if comm.rank == 0:
            with pytest.raises(PeerFailed, match=rf"rank 1 stopped: {error.__name__} in ps.average\(\): enough"):
                ps.average(1.0, comm=comm)
        else:

            def half(channel):
                channel.transport.gather(bytes(16), "half of an average")
                raise error("enough")

            with pytest.raises(error):
                together(comm, "ps.average()", half)
        return ps.average(1.0 if comm.rank == 0 else 5.0, comm=comm)

    assert ps.testing.run(2, rank) == [3.0, 3.0]
