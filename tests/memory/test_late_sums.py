"""Sums of a sample of z on a device: of z as its stream has it then, found late, and the same as on the host."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest
import torch
from memory.emulated import RANK, EmulatedDevice, EmulatedMemory, settle
from torch.utils._python_dispatch import TorchDispatchMode

import pushsum_opt as ps
from pushsum_opt.errors import CallOrderError
from pushsum_opt.graphs import Complete, OnePeerExponential

WAYS = pytest.mark.parametrize("direct", [True, False], ids=["direct", "staged"])


def on_device(tensors, direct=True, eager=0.0, **options):
    """A memory on a device that does nothing before somebody waits for it."""
    names = [f"z{i}" for i in range(len(tensors))]
    return EmulatedMemory(tensors, names, None, 1 << 10, device=EmulatedDevice(eager=eager), direct=direct, **options)


def places_of(memory, step=3):
    pieces = [(chunk, i) for chunk in memory.chunks for i in range(len(chunk.pieces))]
    return [(chunk, i, slice(number % 2, None, step)) for number, (chunk, i) in enumerate(pieces)]


def signs_for(memory, places):
    count = sum(len(memory.some_values(*place)) for place in places)
    return np.random.default_rng(1).integers(0, 2, (8, count)) * 2.0 - 1.0


def merge(memory, value):
    """Let a message with this value everywhere come, half of which counts."""
    for chunk in memory.chunks:
        slab = memory.new_slab(chunk.nbytes, chunk.device)
        data = memory.wire_buffer(slab, chunk.nbytes).data
        data.view("float32")[:] = value
        memory.merge_if_finite(chunk, slab, 1.0, 1.0)


@WAYS
def test_sums_are_those_after_the_merges_before_them_and_before_those_behind(direct):
    tensors = [torch.zeros(700), torch.zeros(9, 30)]
    memory = on_device(tensors, direct)
    places = places_of(memory)
    signs = signs_for(memory, places)
    merge(memory, 8.0)
    first = memory.begin_sums(places, signs)
    merge(memory, 0.0)
    assert not any(tensor.any() for tensor in tensors), "nothing has run: nobody waited"
    assert first.result() == pytest.approx(4.0 * signs.sum(1), rel=1e-13)
    again = memory.begin_sums(places, signs)
    assert again.result() == pytest.approx(2.0 * signs.sum(1), rel=1e-13)
    assert first.result() == pytest.approx(4.0 * signs.sum(1), rel=1e-13), "they stay what they were"


def test_on_another_stream_sums_wait_for_what_stands_on_the_one_before():
    memory = on_device([torch.arange(50.0)])
    (chunk,) = memory.chunks
    signs = np.ones((8, 25))
    device = memory._device
    memory.begin_sums([(chunk, 0, slice(0, None, 2))], signs)
    device.current = lambda: device.inward
    begun = memory.begin_sums([(chunk, 0, slice(1, None, 2))], signs)
    device.finish(device.inward)  # where it could overtake, it would
    assert begun.result() == pytest.approx([25.0**2] * 8)


def test_sums_that_nobody_asked_for_are_given_up_by_later_ones():
    memory = on_device([torch.ones(50)])
    places = places_of(memory)
    signs = signs_for(memory, places)
    first, second = (memory.begin_sums(places, signs) for _ in range(2))
    assert first.result() is None
    assert second.result() == pytest.approx(signs.sum(1))


def test_other_signs_and_other_places_are_heeded():
    memory = on_device([torch.arange(50.0), torch.arange(70.0)])
    for step, factor in ((3, 1.0), (5, 1.0), (5, 2.0)):
        places = places_of(memory, step)
        signs = factor * signs_for(memory, places)
        sample = np.concatenate([memory.some_values(*place) for place in places])
        assert memory.begin_sums(places, signs).result() == pytest.approx(signs @ sample)


def test_signs_are_replaced_once_the_device_has_finished_with_them():
    memory = on_device([torch.ones(50)])
    places = places_of(memory)
    signs = signs_for(memory, places)
    first = memory.begin_sums(places, signs)
    assert not first._done.done
    memory.begin_sums(places, signs.copy())
    assert first._done.done


@WAYS
def test_host_and_device_tensors_are_summed_together(direct):
    memory = on_device([torch.arange(50.0), torch.arange(70.0), torch.arange(90.0)], direct, on_host=("z1",))
    places = places_of(memory)
    signs = signs_for(memory, places)
    sample = np.concatenate([memory.some_values(*place) for place in places])
    assert {chunk.device for chunk, *_ in places} == {"cpu", "emulated:0"}
    assert memory.begin_sums(places, signs).result() == pytest.approx(signs @ sample)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("on_host", [(), ("z1",)])
def test_sums_of_what_is_not_finite_are_none(bad, on_host):
    tensors = [torch.ones(50), torch.ones(50)]
    memory = on_device(tensors, on_host=on_host)
    places = places_of(memory, 1)
    tensors[1][21] = bad
    assert memory.begin_sums(places, signs_for(memory, places)).result() is None


@pytest.mark.parametrize("missing", ["pinned memory", "device memory"])
def test_where_there_is_no_memory_there_are_no_sums_and_no_error(missing):
    memory = on_device([torch.ones(50)])
    places = places_of(memory)
    signs = signs_for(memory, places)
    device = memory._device
    by_torch = device.by_torch

    def refuse(work, stream):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    if missing == "pinned memory":
        device.pinned_free = 0
    else:
        device.by_torch = refuse
    assert memory.begin_sums(places, signs).result() is None
    device.pinned_free, device.by_torch = None, by_torch
    assert memory.begin_sums(places, signs).result() == pytest.approx(signs.sum(1))


def test_nothing_is_recorded_or_waited_for_while_a_graph_is_captured():
    memory = on_device([torch.ones(50)])
    places = places_of(memory)
    signs = signs_for(memory, places)
    begun = memory.begin_sums(places, signs)
    device = memory._device
    queues = (device.own, device.outward, device.inward)
    before = [len(queue) for queue in queues]

    def refuse():
        raise CallOrderError("a round was called while a CUDA graph is captured")

    device.current = refuse
    for call in (begun.result, lambda: memory.begin_sums(places, signs)):
        with pytest.raises(CallOrderError, match="captured"):
            call()
    assert [len(queue) for queue in queues] == before
    del device.current
    assert begun.result() == pytest.approx(signs.sum(1)), "after the capture they are there"


def test_many_tensors_cost_as_many_calls_of_torch_as_few_and_memory_is_taken_once():
    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, call, types, args=(), kwargs=None):
            launches.extend([call] * (not call.is_view))
            return call(*args, **(kwargs or {}))

    counts = []
    for many in (2, 60):
        memory = on_device([torch.ones(40) for _ in range(many)])
        places = places_of(memory)
        signs = signs_for(memory, places)
        assert memory.begin_sums(places, signs).result() is not None
        allocated = memory._device.allocated
        launches = []
        with Counted():
            assert memory.begin_sums(places, signs).result() is not None
        assert memory._device.allocated == allocated
        counts.append(len(launches))
    assert counts[0] == counts[1] <= 8


# ---------------------------------------------------------------------- the live consensus distance


def pulled_apart(comm, rounds, staleness, graph, together=None):
    """Each rank is drawn to a point of its own; what it reads after each round, and the exact distance at the end."""
    RANK.number = comm.rank
    random = torch.Generator().manual_seed(comm.rank)
    tensors = {"a": torch.zeros(300), "b": torch.zeros(10, 12), "c": torch.zeros(3), "d": torch.zeros(8, 10)[:, ::2]}
    points = [torch.randn(tensor.shape, generator=random) for tensor in tensors.values()]
    path = []
    with ps.PushSum(tensors, graph=graph, staleness=staleness, comm=comm) as push_sum:
        push_sum.means()
        for _ in range(rounds):
            with push_sum.local_step():
                settle(push_sum)
                for tensor, point in zip(tensors.values(), points, strict=True):
                    tensor -= 0.1 * (tensor - point)
            push_sum.mix()
            path.append(push_sum.means().get("consensus_distance", float("nan")))
            if together is not None:
                together.wait(timeout=30)
        return path, ps.consensus_distance(push_sum)


@functools.cache
def on_the_host(size, rounds, **how):
    return ps.testing.run(size, lambda comm: pulled_apart(comm, rounds, **how))


ALL, SOME = {}, {"only": (1,)}  # of the ranks are on a device


@pytest.mark.parametrize(
    ("size", "staleness", "graph", "rounds", "where"),
    [
        (4, 0, OnePeerExponential(), 16, ALL),
        (4, 0, OnePeerExponential(), 16, SOME),
        (3, 1, Complete(), 16, ALL),
        (3, 1, Complete(), 16, SOME),
        (2, 2, Complete(), 24, ALL),
    ],
)
def test_ranks_on_a_device_read_what_ranks_on_the_host_read_in_every_round(
    emulate, size, staleness, graph, rounds, where
):
    how = {"rounds": rounds, "staleness": staleness, "graph": graph}
    emulate(direct=False, only=())
    on_host = on_the_host(size, **how)
    made = emulate(direct=staleness == 0, eager=0.15, **where)
    found = ps.testing.run(size, lambda comm: pulled_apart(comm, **how), seed=5)
    assert made
    for (path, _), (expected, _) in zip(found, on_host, strict=True):
        assert expected[-1] > 1e-3
        assert path == pytest.approx(expected, rel=1e-5, nan_ok=True)


@WAYS
def test_free_running_ranks_on_a_device_read_about_the_exact_distance(emulate, direct):
    together = threading.Barrier(4)
    emulate(direct=direct, eager=0.15)
    found = ps.testing.run(4, lambda comm: pulled_apart(comm, 60, "unbounded", OnePeerExponential(), together))
    for path, exact in found:
        assert exact / 3 < path[-1] < 3 * exact
