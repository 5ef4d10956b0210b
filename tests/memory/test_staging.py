"""Whole rounds over a device whose streams are as late as they may be: not one bit differs from the host's."""

from __future__ import annotations

import functools
import hashlib
import threading

import pytest
import torch
from memory.emulated import NAME, RANK, EmulatedDevice, EmulatedMemory, settle

import pushsum_opt as ps
from pushsum_opt import memory as memories
from pushsum_opt.buffers import PendingBuffer
from pushsum_opt.collectives import averaged
from pushsum_opt.graphs import Complete, OnePeerExponential, Ring
from pushsum_opt.memory.staging import AT_LEAST, Staged

SHAPES = [(7,), (300,), (33, 5), (1,), (1000,), (64, 9)]
WAYS = pytest.mark.parametrize("direct", [True, False], ids=["direct", "staged"])


def training(comm, staleness=0, graph=None, wire=None, dtype=torch.float32, rounds=5):
    """Rounds with local steps before them: the tensors' bits and w at the end."""
    RANK.number = comm.rank
    generator = torch.Generator().manual_seed(comm.rank)
    tensors = {f"z{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(SHAPES)}
    tensors["strided"] = torch.randn(6, 20, generator=generator).to(dtype)[:, ::2]
    graph = graph or OnePeerExponential()
    with ps.PushSum(tensors, graph=graph, staleness=staleness, wire_dtype=wire, comm=comm) as push_sum:
        for _ in range(rounds):
            with push_sum.local_step():
                settle(push_sum)
                for tensor in tensors.values():
                    tensor += torch.randn(tensor.shape, generator=generator).to(dtype) * 0.1
            push_sum.mix()
        push_sum.drain()
        settle(push_sum)
        weight = push_sum.push_weight
    return [tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors.values()], weight


def digests_on_the_host(size, **how):
    """What programs print that run :func:`training` over a network: a digest of each rank's bits, and its w."""
    ends = ps.testing.run(size, lambda comm: training(comm, **how))
    return [(hashlib.sha256(b"".join(bits)).hexdigest(), repr(weight)) for bits, weight in ends]


@functools.cache
def on_the_host(size, **how):
    return ps.testing.run(size, lambda comm: training(comm, **how))


@pytest.mark.parametrize("way", ["direct", "staged", "staged through two buffers"])
@pytest.mark.parametrize("eager", [0.1, 0.7])
@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("wire", [None, "bfloat16", "int8"])
def test_late_streams_change_no_bit(emulate, way, eager, staleness, wire):
    emulate(direct=False, only=())
    rounds = 20 if wire == "int8" else 5  # the first 16 are whole
    expected = on_the_host(4, staleness=staleness, wire=wire, rounds=rounds)
    emulate(direct=way == "direct", eager=eager, seed=staleness, tight="two" in way)
    found = ps.testing.run(4, lambda c: training(c, staleness=staleness, wire=wire, rounds=rounds), seed=7)
    assert found == expected


@WAYS
def test_half_types_and_their_residuals_change_no_bit(emulate, direct):
    emulate(direct=False, only=())
    expected = on_the_host(4, dtype=torch.bfloat16, staleness=1)
    emulate(direct=direct)
    assert ps.testing.run(4, lambda comm: training(comm, dtype=torch.bfloat16, staleness=1), seed=1) == expected


@WAYS
def test_many_in_peers_change_no_bit(emulate, direct):
    emulate(direct=False, only=())
    expected = on_the_host(5, graph=Complete(), rounds=3)
    emulate(direct=direct)
    assert ps.testing.run(5, lambda comm: training(comm, graph=Complete(), rounds=3), seed=2) == expected


@WAYS
@pytest.mark.parametrize("staleness", [0, 1])
def test_host_and_device_parameters_share_one_round(emulate, direct, staleness):
    """The same tensors are on the host on every rank; chunks know their device."""
    emulate(direct=False, only=(), on_host=("z1", "z4"))
    made = emulate(direct=direct, on_host=("z1", "z4"))
    mixed = ps.testing.run(2, lambda comm: training(comm, graph=Ring(), staleness=staleness), seed=3)
    assert {chunk.device for chunk in made[0].chunks} == {"cpu", NAME}
    emulate(direct=False, only=())
    assert mixed == on_the_host(2, graph=Ring(), staleness=staleness)


@WAYS
def test_a_rank_on_the_host_exchanges_with_one_on_a_device(emulate, direct):
    emulate(direct=False, only=())
    expected = on_the_host(4, wire="float16")
    made = emulate(direct=direct, only=(1, 2))
    assert ps.testing.run(4, lambda comm: training(comm, wire="float16"), seed=4) == expected
    assert len(made) == 2


@WAYS
def test_free_running_ranks_lose_no_mass(emulate, direct):
    emulate(direct=direct)
    ends = ps.testing.run(4, lambda comm: training(comm, staleness="unbounded"), seed=5)
    assert sum(weight for _, weight in ends) == pytest.approx(4, rel=1e-12)


@WAYS
def test_exact_averages_and_saving_read_what_is_in_flight(emulate, direct):
    def rank(comm):
        RANK.number = comm.rank
        z = torch.full((500,), float(comm.rank))
        with ps.PushSum([z], staleness=2, comm=comm) as push_sum:
            for _ in range(5):
                push_sum.mix()
            with averaged(push_sum):
                settle(push_sum)
                inside = z.clone()
            state = push_sum.state()
            push_sum.load_state(state)
            push_sum.drain()
            settle(push_sum)
            return inside, ps.consensus_distance(push_sum)

    emulate(direct=direct)
    for inside, _ in ps.testing.run(4, rank, seed=6):
        torch.testing.assert_close(inside, torch.full((500,), 1.5))


# ---------------------------------------------------------------------- the rules behind it


def test_every_thread_that_talks_to_the_transport_chose_its_device(emulate):
    made = emulate(direct=True)

    def rank(comm):
        RANK.number = comm.rank
        with ps.PushSum([torch.zeros(4)], staleness=1, comm=comm) as push_sum:
            worker = push_sum.transport._thread.ident
            push_sum.mix()
            return threading.get_ident(), worker

    assert {thread for pair in ps.testing.run(2, rank) for thread in pair} == made[0]._device.threads | made[
        1
    ]._device.threads


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_callers_current_device_stays_what_it_was(emulate, staleness):
    made = emulate(direct=True)

    def rank(comm):
        RANK.number = comm.rank
        with ps.PushSum([torch.zeros(4)], staleness=staleness, comm=comm) as push_sum:
            push_sum.mix()
            return threading.get_ident()

    callers = set(ps.testing.run(2, rank))
    assert callers <= made[0]._device.threads | made[1]._device.threads
    assert not callers & (made[0]._device.chosen | made[1]._device.chosen)


def test_only_the_worker_keeps_away_from_graphs_that_are_captured(emulate):
    """A query of an event in its thread would spoil the capture of the caller; the caller's own mode is left alone."""
    made = emulate(direct=True)

    def rank(comm):
        RANK.number = comm.rank
        with ps.PushSum([torch.zeros(4)], staleness=1, comm=comm) as push_sum:
            worker = push_sum.transport._thread.ident
            push_sum.mix()
            return worker

    assert set(ps.testing.run(2, rank)) == made[0]._device.relaxed | made[1]._device.relaxed


def memory_of(direct, eager, count=4):
    tensors = [torch.full((128,), float(i)) for i in range(count)]  # one chunk each
    device = EmulatedDevice(eager=eager)
    memory = EmulatedMemory(tensors, [f"t{i}" for i in range(count)], None, 512, device=device, direct=direct)
    return memory, device


@WAYS
def test_a_buffer_is_not_ready_before_the_device_is_done_with_it(direct):
    memory, device = memory_of(direct, eager=0.0)
    chunk = memory.chunks[0]
    slab = memory.new_slab(chunk.nbytes, NAME)
    sent = memory.pack(chunk, slab)
    assert isinstance(sent, PendingBuffer)
    assert not sent.ready()
    device.synchronize()
    assert sent.ready()
    memory.merge_if_finite(chunk, slab, 1.0, 1.0)
    assert not memory.wire_buffer(slab, chunk.nbytes).ready(), "the merge still reads it"
    device.synchronize()
    assert memory.wire_buffer(slab, chunk.nbytes).ready()


@WAYS
def test_a_slab_that_was_just_filled_is_read_only_after_that(direct):
    """As when messages that were saved are filled in again: copies stand on other streams."""
    memory, _ = memory_of(direct, eager=0.0)
    chunk = memory.chunks[0]
    slab = memory.new_slab(chunk.nbytes, NAME)  # filled with bytes that are nan
    memory.pack(chunk, slab)
    assert memory.received_is_finite(chunk, slab)


@WAYS
def test_a_slab_that_is_still_read_is_filled_only_after_that(direct):
    memory, device = memory_of(direct, eager=0.0)
    three = memory.chunks[3]
    slab = memory.new_slab(three.nbytes, NAME)
    memory.wire_buffer(slab, three.nbytes).data.view("float32")[:] = 5.0
    memory.merge_if_finite(three, slab, 1.0, 1.0)
    memory.pack(memory.chunks[0], slab)
    device.finish(device.outward)  # as early as it may
    device.synchronize()
    assert set(memory.values(three)) == {4.0}, "what had come was overwritten before it was merged"


@WAYS
@pytest.mark.parametrize("heal", [False, True])
def test_checking_and_merging_what_has_come_waits_for_nothing(direct, heal):
    memory, device = memory_of(direct, eager=0.0)
    chunk = memory.chunks[2]
    slab = memory.new_slab(chunk.nbytes, NAME)
    memory.wire_buffer(slab, chunk.nbytes).data.view("float32")[:] = 4.0
    done = []
    device.own.append(lambda: done.append("the caller's own work"))
    verdict = memory.merge_if_finite(chunk, slab, 1.0, 1.0, heal=heal)
    assert not done
    assert not verdict.ready()
    assert set(memory._tensors[2].tolist()) == {2.0}
    device.synchronize()
    assert done
    assert verdict.ready()
    assert verdict.outcome().finite
    assert set(memory._tensors[2].tolist()) == {3.0}


def test_bounce_buffers_are_two_while_the_device_keeps_up_and_one_per_chunk_at_most():
    for eager, most in ((0.999, AT_LEAST), (0.0, 4)):
        memory, device = memory_of(direct=False, eager=eager)
        slabs = [memory.new_slab(chunk.nbytes, NAME) for chunk in memory.chunks]
        for _ in range(3):
            for chunk, slab in zip(memory.chunks, slabs, strict=True):
                memory.pack(chunk, slab)
                if eager:
                    device.synchronize()
        assert isinstance(memory._path, Staged)
        assert len(memory._path._out) == most - (eager > 0), "one is enough where each is done before the next begins"
        assert memory.extra_bytes == memory._path.held == len(memory._path._out) * 512


def test_a_checked_chunk_is_copied_to_the_device_once():
    memory, device = memory_of(direct=False, eager=0.5)
    chunk = memory.chunks[0]
    slab = memory.new_slab(chunk.nbytes, NAME)
    memory.wire_buffer(slab, chunk.nbytes).data[:] = 0
    copies = []
    device.copy, copy = lambda *arguments: (copies.append(arguments), copy(*arguments)), device.copy
    assert memory.received_is_finite(chunk, slab)
    memory.merge_if_finite(chunk, slab, 1.0, 1.0)
    device.synchronize()
    assert [source.nbytes for _, source, _ in copies if source.nbytes > 4] == [chunk.nbytes], "but for the flags"


def test_a_second_device_in_one_process_is_refused_with_the_way_out():
    class Elsewhere:
        def __init__(self, name):
            self.device = torch.device(name)

        def data_ptr(self): ...

    with pytest.raises(ps.errors.ConfigurationError, match=r"cuda:0 and cuda:1.*one rank per GPU.*local_device"):
        memories.bind([Elsewhere("cuda:1"), Elsewhere("cuda:0")], ["a", "b"], None, None)
    with pytest.raises(ps.errors.ConfigurationError, match="meta"):
        memories.bind([torch.zeros(3, device="meta")], ["a"], None, None)
