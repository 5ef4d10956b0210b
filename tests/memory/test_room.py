"""Buffers on a device are made before torch's pool fills it; where there is no room, the error says who has it."""

from __future__ import annotations

import pytest
import torch
from memory.emulated import RANK, settle

import pushsum_opt as ps
from pushsum_opt.errors import OutOfMemoryError, PeerFailed
from pushsum_opt.graphs import Complete, OnePeerExponential, Ring
from pushsum_opt.memory.room import host_room
from pushsum_opt.push_sum import changing

WAYS = pytest.mark.parametrize("direct", [True, False], ids=["direct", "staged"])
MODES = pytest.mark.parametrize("staleness", [0, 1, 3, "unbounded"])
FULL = {"free": 0, "pinned_free": 0}


def tensors_of(rank):
    return {f"z{i}": torch.full((count,), float(rank)) for i, count in enumerate((7, 300, 129, 64))}


def fill(memory):
    """As activations do, once the optimizer is wrapped."""
    vars(memory._device).update(FULL)


@WAYS
@MODES
@pytest.mark.parametrize(("graph", "eager"), [(OnePeerExponential(), 0.2), (Complete(), 0.7)], ids=["one", "all"])
def test_no_round_needs_memory_that_construction_did_not_take(emulate, direct, staleness, graph, eager):
    emulate(direct=direct, eager=eager)

    def rank(comm):
        tensors = tensors_of(comm.rank)
        with ps.PushSum(tensors, graph=graph, staleness=staleness, comm=comm) as push_sum:
            fill(push_sum.memory)
            for _ in range(5):
                push_sum.mix()
            push_sum.drain()
            settle(push_sum)
            return push_sum.push_weight, float(tensors["z1"][0])

    found = ps.testing.run(3, rank, seed=3)
    assert sum(weight for weight, _ in found) == pytest.approx(3, rel=1e-12)
    assert sum(weight * z for weight, z in found) == pytest.approx(3, rel=1e-5)


@WAYS
@pytest.mark.parametrize("staleness", [0, 2])
def test_tensors_that_are_added_bring_their_buffers_at_once(emulate, direct, staleness):
    emulate(direct=direct)

    def rank(comm):
        tensors = tensors_of(comm.rank)
        with ps.PushSum(tensors, graph=Ring(), staleness=staleness, comm=comm) as push_sum:
            push_sum.mix()
            changing.extend(push_sum.member, {"more": torch.full((500,), float(comm.rank))}, "add_param_group()")
            fill(push_sum.memory)
            for _ in range(3):
                push_sum.mix()
            push_sum.drain()
            return push_sum.push_weight

    assert sum(ps.testing.run(3, rank, seed=4)) == pytest.approx(3, rel=1e-12)


def test_a_sender_whose_device_is_full_waits_for_its_last_message_in_place_of_a_further_buffer(emulate):
    made = emulate(direct=True, eager=0.1)

    def rank(comm):
        with ps.PushSum(tensors_of(comm.rank), graph=Ring(), staleness=3, comm=comm) as push_sum:
            fill(push_sum.memory)
            for _ in range(6):
                push_sum.mix()
            return push_sum.member.mode._sent_slabs.made, push_sum.member.mode._received_slabs.made

    assert ps.testing.run(2, rank, seed=5) == [(1, 3)] * 2
    assert all(memory._device.free == 0 for memory in made)


@MODES
def test_a_rank_that_exchanges_with_nobody_makes_no_buffers(emulate, staleness):
    emulate(direct=True)

    def rank(comm):
        with ps.PushSum(tensors_of(0), staleness=staleness, comm=comm) as push_sum:
            return push_sum.stats()["extra_bytes"]

    assert ps.testing.run(1, rank) == [0.0]


def test_passes_are_compiled_for_what_is_exchanged_and_before_the_first_round(emulate):
    made = emulate(direct=True)

    def rank(comm):
        tensors = [torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.float64)]
        with ps.PushSum(tensors, wire_dtype="float32", comm=comm):
            pass

    ps.testing.run(1, rank)
    pairs = {("float32", "float32"), ("bfloat16", "bfloat16"), ("float64", "float32")}
    assert made[0]._device.prepared == pairs


@WAYS
def test_a_pool_that_holds_all_memory_is_emptied_and_asked_again(emulate, direct):
    made = emulate(direct=direct, free=0, pinned_free=0, pool=1 << 20, pinned_pool=1 << 20)

    def rank(comm):
        with ps.PushSum(tensors_of(comm.rank), graph=Ring(), staleness=1, comm=comm) as push_sum:
            push_sum.mix()

    ps.testing.run(2, rank)
    assert [(memory._device.pool, memory._device.pinned_pool) for memory in made] == [(0, 0)] * 2


@MODES
def test_no_room_on_the_device_is_an_error_with_the_numbers_and_the_others_hear_of_it(emulate, staleness):
    """A page of flags fits, and not all of the slabs."""
    emulate(direct=True, only=(1,), free=5000, pool=300)
    found = errors(staleness)
    assert isinstance(found[1], OutOfMemoryError)
    assert isinstance(found[1], MemoryError)
    text = str(found[1])
    assert text.startswith("rank 1: emulated:0 has no room for a chunk of a message to ")
    for part in (": asked ", " bytes, free ", "of 1.0 GiB", "torch's pool holds 512.0 MiB (512.0 MiB in tensors"):
        assert part in text, text
    assert "wire_dtype='bfloat16'" in text
    assert isinstance(found[0], PeerFailed)
    assert str(found[0]).startswith(f"rank 0: rank 1 stopped: OutOfMemoryError: {text}. See what rank 1 printed")


def test_no_pinned_memory_is_an_error_with_the_numbers(emulate):
    emulate(direct=False, only=(1,), pinned_free=21_000, pinned_pool=100)
    text = str(errors(1)[1])
    assert text.startswith("rank 1: the host has no pinned memory for a chunk of a message to receive: asked ")
    assert "of 2.0 GiB" in text
    assert "fewer ranks on this host" in text


def test_no_room_for_bounce_buffers_is_said_of_them(emulate):
    emulate(direct=False, only=(1,), free=4096 + 600)
    text = str(errors(0)[1])
    assert text.startswith("rank 1: emulated:0 has no room for a buffer between the GPU and pinned host memory: asked")


def errors(staleness):
    """What the ranks of a job of two are told, of which one has little memory and catches the error."""

    def rank(comm):
        RANK.number = comm.rank
        options = {"graph": Ring(), "staleness": staleness, "timeout": 20.0}
        try:
            with ps.PushSum(tensors_of(comm.rank), comm=comm, **options) as push_sum:
                push_sum.drain()
        except (OutOfMemoryError, PeerFailed) as error:
            return error

    return ps.testing.run(2, rank, timeout=60)


def test_the_hosts_memory_is_asked_of_the_system():
    room = host_room()
    if room.total is not None:
        assert 0 < room.available <= room.total
