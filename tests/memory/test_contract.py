"""What every memory promises, against numpy in float64: host, numpy, an emulated device, and CUDA where it is.

"compiled" is the emulated device with the kernels of CUDA, compiled for the host; "host, by torch" is the host where
passes in eight bits are not compiled, as without numba.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from gpu.device import needs_cuda
from memory.compiled import CompiledDevice, needs_compiler
from memory.emulated import EmulatedDevice, EmulatedMemory, MemoryByTorch

from pushsum_opt.buffers import DeviceBytes, PendingBuffer
from pushsum_opt.errors import ConfigurationError, LayoutError
from pushsum_opt.memory.array import ArrayMemory
from pushsum_opt.memory.host import DTYPES, HostMemory

CHUNK_BYTES = 1 << 10
SHAPES = [(3,), (40, 7), (1,), (700,), (5, 2, 3), (129,)]
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


KINDS = (
    *("host", "host, by torch", "array"),
    *("emulated, direct", "emulated, staged", "compiled, direct", "cuda, direct", "cuda, staged"),
)
MARKS = {"cuda": needs_cuda, "compiled": needs_compiler}


@dataclass
class Kind:
    """One kind of memory: how to make tensors and read them."""

    name: str

    def make(self, values: np.ndarray, dtype: str) -> Any:
        """A tensor with these values, its strides kept."""
        if self.name == "array":
            return values.astype(dtype, order="K")
        tensor = torch.from_numpy(values.copy(order="K")).to(DTYPES[dtype])
        return tensor.cuda() if self.name.startswith("cuda") else tensor

    def bind(self, tensors, wire=None, chunk_bytes=CHUNK_BYTES, names=None, **how):
        arguments = (tensors, names or [f"t{i}" for i in range(len(tensors))], wire, chunk_bytes)
        if self.name == "array":
            return ArrayMemory(*arguments, **how)
        if self.name == "host":
            return HostMemory(*arguments, **how)
        if self.name == "host, by torch":
            return MemoryByTorch(*arguments, **how)
        direct = "direct" in self.name
        if self.name.startswith("emulated"):
            return EmulatedMemory(*arguments, device=EmulatedDevice(3), direct=direct, **how)
        if self.name.startswith("compiled"):
            return EmulatedMemory(*arguments, device=CompiledDevice(3), direct=direct, **how)
        from pushsum_opt.memory.cuda import CudaDevice
        from pushsum_opt.memory.on_device import DeviceMemory

        return DeviceMemory(*arguments, device=CudaDevice("cuda:0"), direct=direct, **how)

    def read(self, memory, tensor) -> np.ndarray:
        """The values of a tensor in float64, once all that is under way is done."""
        if isinstance(memory, EmulatedMemory):
            memory._catch_up()
        return np.array(tensor, np.float64) if self.name == "array" else tensor.detach().cpu().double().numpy().copy()


def cases(*dtypes, without=None):
    """Cross kinds with dtypes, or pairs of them; numpy has no bfloat16, so its kind has no such case."""
    found = []
    for name in KINDS:
        for chosen in dtypes or ((),):
            types = (chosen,) if isinstance(chosen, str) else tuple(chosen)
            if name != without and not (name == "array" and "bfloat16" in types):
                marks = MARKS.get(name.partition(",")[0], ())
                identity = "-".join((name.replace(", ", "-"), *types))
                found.append(pytest.param(Kind(name), *types, marks=marks, id=identity))
    return found


def pytest_generate_tests(metafunc):
    """Run a test that says nothing of its kinds over all of them, and with ``dtype`` over all dtypes that they have."""
    names = set(metafunc.fixturenames)
    marks = metafunc.definition.iter_markers("parametrize")
    chosen = {name for mark in marks for name in ([mark.args[0]] if isinstance(mark.args[0], str) else mark.args[0])}
    if "kind" in names - chosen:
        if "dtype" in names:
            metafunc.parametrize(("kind", "dtype"), cases("float64", "float32", "float16", "bfloat16"))
        else:
            metafunc.parametrize("kind", cases())


def values_of(seed, shapes=SHAPES):
    """Values by tensor: two of them strided, one of these not dense."""
    generator = np.random.default_rng(seed)
    values = [generator.normal(size=shape) for shape in shapes]
    values.append(np.asfortranarray(generator.normal(size=(6, 9))))  # dense, another order of the axes
    values.append(generator.normal(size=(8, 10)))
    return values


def tensors_of(kind, seed, dtype):
    tensors = [kind.make(values, dtype) for values in values_of(seed)]
    tensors[-1] = tensors[-1][:, ::2]  # not dense
    return tensors


def sent(kind, memory, chunk, slab, **give) -> Any:
    """Pack and take what a transport would send: a copy of the bytes, once they are ready."""
    buffer = memory.pack(chunk, slab, **give)
    return bytes_of(buffer).copy()


def bytes_of(buffer):
    if isinstance(buffer, PendingBuffer):
        while not buffer.ready():
            pass
        buffer = buffer.data
    if isinstance(buffer, DeviceBytes):
        return buffer.owner.cpu().numpy()
    return np.asarray(buffer)


def receive(memory, chunk, data):
    """A slab into which a transport has received ``data``."""
    slab = memory.new_slab(chunk.nbytes, chunk.device)
    buffer = memory.wire_buffer(slab, chunk.nbytes)
    if isinstance(buffer, PendingBuffer):
        while not buffer.ready():
            pass
        buffer = buffer.data
    if isinstance(buffer, DeviceBytes):
        buffer.owner.copy_(torch.from_numpy(data))
        torch.cuda.synchronize()
    else:
        np.asarray(buffer)[:] = data
    return slab


def everything(kind, memory, tensors):
    return [kind.read(memory, tensor) for tensor in tensors]


def send_all(kind, source, target, **give):
    """Pack every chunk of one memory, and return slabs of another that have received them."""
    slabs = {}
    for mine, theirs in zip(source.chunks, target.chunks, strict=True):
        slab = source.new_slab(mine.nbytes, mine.device)
        slabs[theirs.index] = receive(target, theirs, sent(kind, source, mine, slab, **give))
    return slabs


def merged(memory, chunk, slab, weight, mass, **how):
    """Merge what is finite, and tell what became of it."""
    outcome = memory.merge_if_finite(chunk, slab, weight, mass, **how).outcome()
    assert outcome.finite
    return outcome


# ---------------------------------------------------------------------- packing


def test_what_is_packed_is_what_is_held_bit_for_bit(kind, dtype):
    tensors = tensors_of(kind, 1, dtype)
    memory = kind.bind(tensors)
    held = everything(kind, memory, tensors)
    other = [kind.make(np.zeros_like(values), dtype) for values in values_of(1)]
    other[-1] = other[-1][:, ::2]
    target = kind.bind(other)
    slabs = send_all(kind, memory, target)
    for chunk in target.chunks:
        np.testing.assert_array_equal(target.received_values(chunk, slabs[chunk.index]), memory.values(chunk))
    for mine, now in zip(held, everything(kind, memory, tensors), strict=True):
        np.testing.assert_array_equal(mine, now)


@pytest.mark.parametrize(
    ("kind", "own", "wire"),
    cases(*(pair for pair in product(("float64", "float32"), ("float32", "float16", "bfloat16")) if len({*pair}) > 1)),
)
def test_rounding_on_the_wire_is_kept(kind, own, wire):
    """w z + M q after giving is what w z was before: the mean over ranks is exact."""
    left, given = 0.6, 0.4
    tensors = tensors_of(kind, 2, own)
    memory = kind.bind(tensors, wire)
    before = [memory.values(chunk).copy() for chunk in memory.chunks]
    assert all(chunk.wire.dtype == wire and chunk.packed for chunk in memory.chunks)
    for chunk, z in zip(memory.chunks, before, strict=True):
        slab = memory.new_slab(chunk.nbytes, chunk.device)
        data = sent(kind, memory, chunk, slab, left=left, given=given)
        q = memory.received_values(chunk, receive(memory, chunk, data))
        assert 0 < np.abs(z - q).max() <= EPSILON[wire] * np.abs(z).max()
        after = memory.values(chunk)
        np.testing.assert_allclose(left * after + given * q, z, atol=4 * EPSILON[own] * np.abs(z).max(), rtol=0)


def test_without_mass_given_packing_changes_nothing(kind):
    tensors = tensors_of(kind, 2, "float32")
    memory = kind.bind(tensors, "float16")
    held = everything(kind, memory, tensors)
    for chunk in memory.chunks:
        sent(kind, memory, chunk, memory.new_slab(chunk.nbytes, chunk.device))
    for mine, now in zip(held, everything(kind, memory, tensors), strict=True):
        np.testing.assert_array_equal(mine, now)


def test_keeping_the_rounding_afterwards_is_the_same_as_while_packing(kind):
    together, apart = tensors_of(kind, 3, "float32"), tensors_of(kind, 3, "float32")
    one, two = kind.bind(together, "float16"), kind.bind(apart, "float16")
    for first, second in zip(one.chunks, two.chunks, strict=True):
        sent(kind, one, first, one.new_slab(first.nbytes, first.device), left=0.5, given=0.5)
        slab = two.new_slab(second.nbytes, second.device)
        sent(kind, two, second, slab)
        two.keep_rounding(second, slab, 0.5, 0.5)
    for mine, theirs in zip(everything(kind, one, together), everything(kind, two, apart), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


# ---------------------------------------------------------------------- merging


@pytest.mark.parametrize(("weight", "mass"), [(1.0, 1.0), (0.9, 0.05), (0.01, 3.0)])
def test_merging_is_the_convex_sum(kind, dtype, weight, mass):
    mine, theirs = tensors_of(kind, 4, dtype), tensors_of(kind, 5, dtype)
    memory, other = kind.bind(mine), kind.bind(theirs)
    before, come = everything(kind, memory, mine), everything(kind, other, theirs)
    slabs = send_all(kind, other, memory)
    for chunk in memory.chunks:
        merged(memory, chunk, slabs[chunk.index], weight, mass)
    for z, z_j, now in zip(before, come, everything(kind, memory, mine), strict=True):
        expected = (weight * z + mass * z_j) / (weight + mass)
        np.testing.assert_allclose(now, expected, rtol=0, atol=3 * EPSILON[dtype] * max(1.0, np.abs(expected).max()))


def test_merging_what_was_rounded_widens_it_first(kind):
    mine, theirs = tensors_of(kind, 4, "float64"), tensors_of(kind, 5, "float64")
    memory, other = kind.bind(mine, "float16"), kind.bind(theirs, "float16")
    before = everything(kind, memory, mine)
    slabs = send_all(kind, other, memory)
    rounded = [values.astype(np.float16).astype(np.float64) for values in everything(kind, other, theirs)]
    for chunk in memory.chunks:
        merged(memory, chunk, slabs[chunk.index], 1.0, 0.5)
    for z, z_j, now in zip(before, rounded, everything(kind, memory, mine), strict=True):
        np.testing.assert_allclose(now, z + (0.5 / 1.5) * (z_j - z), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "half"), cases("float16", "bfloat16"))
def test_half_types_lose_no_mass_over_many_merges(kind, half):
    """x = w z + r follows the float64 sum to float32's precision, where z alone would have lost it."""
    mine = tensors_of(kind, 6, half)
    memory = kind.bind(mine)
    weight = 1.0
    exact = [memory.numerator(chunk, weight) for chunk in memory.chunks]
    for turn in range(20):
        other = kind.bind(tensors_of(kind, 100 + turn, half))
        slabs = send_all(kind, other, memory)
        for chunk in memory.chunks:
            merged(memory, chunk, slabs[chunk.index], weight, 0.3)
            exact[chunk.index] += 0.3 * other.values(chunk)
        weight += 0.3
    for chunk in memory.chunks:
        np.testing.assert_allclose(memory.numerator(chunk, weight), exact[chunk.index], atol=2e-5, rtol=0)
        lost = np.abs(weight * memory.values(chunk) - exact[chunk.index]).max()
        assert lost > 1e-4, "z alone would have done: the test shows nothing"


# ---------------------------------------------------------------------- what is not finite


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_single_bad_element_anywhere_is_found(kind, dtype, bad):
    memory = kind.bind(tensors_of(kind, 7, dtype))
    for chunk in memory.chunks:
        for place in (0, chunk.numel // 2, chunk.numel - 1):
            values = np.zeros(chunk.numel)
            values[place] = bad
            assert not memory.received_is_finite(chunk, receive(memory, chunk, wire_bytes(values, chunk)))
        assert memory.received_is_finite(chunk, receive(memory, chunk, wire_bytes(np.ones(chunk.numel), chunk)))


def test_large_finite_elements_are_finite_though_their_sum_is_not(kind, dtype):
    largest = float(torch.finfo(DTYPES[dtype]).max)
    memory = kind.bind(tensors_of(kind, 7, dtype))
    for chunk in memory.chunks:
        data = wire_bytes(np.full(chunk.numel, largest), chunk)
        assert memory.received_is_finite(chunk, receive(memory, chunk, data))


def wire_bytes(values, chunk):
    return torch.from_numpy(values).to(DTYPES[chunk.wire.dtype]).view(torch.uint8).numpy()


def test_bad_elements_are_healed_and_all_others_stay(kind, dtype):
    mine, theirs = tensors_of(kind, 8, dtype), tensors_of(kind, 9, dtype)
    mine[3][5] = float("nan")
    mine[1][2, 3] = float("inf")
    memory, other = kind.bind(mine), kind.bind(theirs)
    before, come = everything(kind, memory, mine), everything(kind, other, theirs)
    slabs = send_all(kind, other, memory)
    healed = [memory.heal(chunk, slabs[chunk.index]) for chunk in memory.chunks]
    hurt = [any(piece.tensor in (1, 3) for piece in chunk.pieces) for chunk in memory.chunks]
    assert any(healed)
    assert not all(healed)
    assert all(was for now, was in zip(healed, hurt, strict=True) if now)
    for z, z_j, now in zip(before, come, everything(kind, memory, mine), strict=True):
        np.testing.assert_array_equal(now, np.where(np.isfinite(z), z, z_j))
    assert [memory.heal(chunk, slabs[chunk.index]) for chunk in memory.chunks] == [False] * len(memory.chunks)


@pytest.mark.parametrize("heal", [False, True])
def test_nothing_of_a_chunk_that_is_not_finite_is_merged_and_the_next_one_is(kind, dtype, heal):
    mine, theirs = tensors_of(kind, 8, dtype), tensors_of(kind, 9, dtype)
    memory, other = kind.bind(mine), kind.bind(theirs)
    before, come = everything(kind, memory, mine), everything(kind, other, theirs)
    values = np.zeros(memory.chunks[0].numel)
    values[-1] = np.nan
    for _ in range(3):  # flags are used again
        bad = receive(memory, memory.chunks[0], wire_bytes(values, memory.chunks[0]))
        outcome = memory.merge_if_finite(memory.chunks[0], bad, 1.0, 1.0, heal=heal).outcome()
        assert (outcome.finite, outcome.healed) == (False, False)
    for z, now in zip(before, everything(kind, memory, mine), strict=True):
        np.testing.assert_array_equal(now, z)
    slabs = send_all(kind, other, memory)
    for chunk in memory.chunks:
        assert not merged(memory, chunk, slabs[chunk.index], 1.0, 1.0, heal=heal).healed
    for z, z_j, now in zip(before, come, everything(kind, memory, mine), strict=True):
        np.testing.assert_allclose(now, (z + z_j) / 2, rtol=0, atol=3 * EPSILON[dtype] * max(1.0, np.abs(z).max()))


def test_merging_heals_where_it_is_asked_to(kind, dtype):
    mine, theirs = tensors_of(kind, 8, dtype), tensors_of(kind, 9, dtype)
    mine[3][5] = float("nan")
    mine[1][2, 3] = float("-inf")
    mine[-1][0, 1] = float("inf")
    memory, other = kind.bind(mine), kind.bind(theirs)
    before, come = everything(kind, memory, mine), everything(kind, other, theirs)
    slabs = send_all(kind, other, memory)
    told = [merged(memory, chunk, slabs[chunk.index], 1.0, 1.0, heal=True).healed for chunk in memory.chunks]
    last = len(mine) - 1
    assert told == [
        any(
            piece.tensor == last or (piece.tensor, place) in [(3, 5), (1, 17)]
            for piece in chunk.pieces
            for place in range(piece.start, piece.stop)
        )
        for chunk in memory.chunks
    ]
    for z, z_j, now in zip(before, come, everything(kind, memory, mine), strict=True):
        healed = np.where(np.isfinite(z), z, z_j)
        expected = (healed + z_j) / 2
        np.testing.assert_allclose(now, expected, rtol=0, atol=3 * EPSILON[dtype] * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("heal", [False, True])
def test_by_element_what_is_not_finite_stays_and_all_else_is_merged(kind, dtype, heal):
    """Twice, so that residuals and what the wire rounds are seen to stay finite; other chunks know nothing of it."""
    mine, theirs = tensors_of(kind, 8, dtype), tensors_of(kind, 9, dtype)
    for place, value in enumerate(("-inf", "inf", "nan")):
        mine[3][place] = theirs[3][place + 2] = float(value)
    wire = "float16" if dtype in ("float32", "float64") else None
    apart = {"by_element": {"t3", "t7"}}
    memory, other = kind.bind(mine, wire, **apart), kind.bind(theirs, wire, **apart)
    assert {piece.tensor for chunk in memory.chunks if chunk.by_element for piece in chunk.pieces} == {3, 7}
    before, come = everything(kind, memory, mine), everything(kind, other, theirs)
    for _ in range(2):
        slabs = send_all(kind, other, memory, left=0.5, given=0.5)
        send_all(kind, memory, other, left=0.5, given=0.5)
        for chunk in memory.chunks:
            assert not merged(memory, chunk, slabs[chunk.index], 0.5, 0.5, heal=heal).healed
    for z, z_j, now in zip(before, come, everything(kind, memory, mine), strict=True):
        finite = np.isfinite(z) & np.isfinite(z_j)
        tolerance = 6 * max(EPSILON[dtype], EPSILON["float16"] if wire else 0)
        np.testing.assert_allclose(now[finite], (0.25 * z + 0.75 * z_j)[finite], rtol=tolerance, atol=tolerance)
        # What is nan here is -inf there, so nothing heals it; what is finite here keeps its own rounding on the wire.
        np.testing.assert_allclose(now[~finite], z[~finite], rtol=tolerance, atol=tolerance)


def test_by_element_nan_is_healed_where_it_is_asked_for_and_inf_is_not(kind, dtype):
    mine, theirs = tensors_of(kind, 8, dtype), tensors_of(kind, 9, dtype)
    mine[3][0], mine[3][1] = float("nan"), float("-inf")
    memory, other = kind.bind(mine, by_element={"t3"}), kind.bind(theirs, by_element={"t3"})
    come = kind.read(other, theirs[3])
    slabs = send_all(kind, other, memory)
    for chunk in memory.chunks:
        merged(memory, chunk, slabs[chunk.index], 1.0, 1.0, heal=True)
    assert kind.read(memory, mine[3])[:2].tolist() == [come[0], -np.inf]


# ---------------------------------------------------------------------- the local step


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_scaling_a_step_moves_z_by_a_over_w(kind, dtype, weight):
    tensors = tensors_of(kind, 10, dtype)
    memory = kind.bind(tensors)
    before = everything(kind, memory, tensors)
    memory.snapshot()
    for tensor in tensors:
        if isinstance(memory, EmulatedMemory):
            memory._catch_up()
        tensor += 0.5
    after = everything(kind, memory, tensors)
    memory.scale_step(weight, 0.75)
    for old, new, now in zip(before, after, everything(kind, memory, tensors), strict=True):
        expected = old + 0.75 / weight * (new - old)
        np.testing.assert_allclose(now, expected, rtol=0, atol=3 * EPSILON[dtype] * max(1.0, np.abs(expected).max()))


# ---------------------------------------------------------------------- whole values


def test_what_was_taken_away_raw_can_be_put_back_bit_for_bit(kind, dtype):
    tensors = tensors_of(kind, 11, dtype)
    memory = kind.bind(tensors)
    held = everything(kind, memory, tensors)
    kept = [memory.raw(chunk) for chunk in memory.chunks]
    for chunk in memory.chunks:
        memory.assign(chunk, np.full(chunk.numel, 3.0))
    assert all((values == 3.0).all() for values in everything(kind, memory, tensors))
    for chunk, flat in zip(memory.chunks, kept, strict=True):
        memory.put_raw(chunk, flat)
    for mine, now in zip(held, everything(kind, memory, tensors), strict=True):
        np.testing.assert_array_equal(mine, now)


def test_samples_are_bytes_on_the_host_that_change_with_the_values(kind, dtype):
    tensors = tensors_of(kind, 12, dtype)
    memory = kind.bind(tensors)
    chunk = memory.chunks[0]
    looks = [bytes(memory.sample(chunk, 4)) for _ in range(2)]
    memory.assign(chunk, memory.values(chunk) + 1.0)
    assert looks[0] == looks[1] != bytes(memory.sample(chunk, 4))


def test_sums_of_a_sample_are_those_of_its_values_when_they_were_begun(kind, dtype):
    tensors = tensors_of(kind, 12, dtype)
    memory = kind.bind(tensors)
    pieces = [(chunk, i) for chunk in memory.chunks for i in range(len(chunk.pieces))]
    places = [(chunk, i, slice(number % 2, None, 3)) for number, (chunk, i) in enumerate(pieces)]
    for seed in range(2):
        sample = np.concatenate([memory.some_values(*place) for place in places])
        signs = np.random.default_rng(seed).integers(0, 2, (8, len(sample))) * 2.0 - 1.0
        begun = memory.begin_sums(places, signs)
        everything(kind, memory, tensors)  # the emulated device knows no torch on its stream
        for chunk in memory.chunks:
            memory.assign(chunk, memory.values(chunk) + 1.0)
        np.testing.assert_allclose(begun.result(), signs @ sample, rtol=1e-13, atol=1e-12)
    memory.close()


def test_sums_of_what_is_not_finite_are_none(kind):
    tensors = [kind.make(np.array([1.0, np.inf, 2.0]), "float32")]
    memory = kind.bind(tensors)
    assert memory.begin_sums([(memory.chunks[0], 0, slice(0, None, 2))], np.ones((2, 2))).result().tolist() == [3.0] * 2
    assert memory.begin_sums([(memory.chunks[0], 0, slice(0, 2))], np.ones((2, 2))).result() is None


def test_residuals_survive_saving_and_another_plan(kind):
    mine = tensors_of(kind, 13, "float16")
    memory = kind.bind(mine)
    slabs = send_all(kind, kind.bind(tensors_of(kind, 14, "float16")), memory)
    for chunk in memory.chunks:
        merged(memory, chunk, slabs[chunk.index], 1.0, 0.3)
    whole = np.concatenate([memory.numerator(chunk, 1.3) for chunk in memory.chunks])
    state = memory.residual_state()
    again = kind.bind(mine, chunk_bytes=CHUNK_BYTES)
    again.load_residual_state(state)
    np.testing.assert_array_equal(np.concatenate([again.numerator(c, 1.3) for c in again.chunks]), whole)


def test_messages_that_have_come_survive_saving(kind, dtype):
    theirs = tensors_of(kind, 15, dtype)
    memory, other = kind.bind(tensors_of(kind, 14, dtype)), kind.bind(theirs)
    slabs = send_all(kind, other, memory)
    state = memory.message_state(slabs)
    fresh = {chunk.index: memory.new_slab(chunk.nbytes, chunk.device) for chunk in memory.chunks}
    memory.load_message_state(fresh, state)
    for chunk in memory.chunks:
        assert memory.received_is_finite(chunk, fresh[chunk.index])
        np.testing.assert_array_equal(memory.received_values(chunk, fresh[chunk.index]), other.values(chunk))


# ---------------------------------------------------------------------- another plan


def test_tensors_can_be_added(kind, dtype):
    tensors = tensors_of(kind, 16, dtype)
    memory = kind.bind(tensors[:2], names=["a", "b"])
    layout = memory.layout_digest
    memory.extend(tensors[2:4], ["c", "d"])
    assert memory.layout_digest != layout
    assert list(memory.described()) == ["a", "b", "c", "d"]
    assert sum(chunk.numel for chunk in memory.chunks) == sum(np.prod(shape) for shape in SHAPES[:4])


@pytest.mark.parametrize(
    ("kind", "dtype"), cases("float64", "float32", "float16", "bfloat16", without="array")
)  # what numpy has is fixed in place
def test_a_tensor_that_moved_is_followed(kind, dtype):
    """Its storage is another one now, with other strides: what is packed comes from there."""
    tensor = kind.make(np.arange(600.0).reshape(20, 30) / 100, dtype)
    memory = kind.bind([tensor])
    moved = kind.make(np.asfortranarray(-np.arange(600.0).reshape(20, 30) / 100), dtype)
    tensor.data = moved
    memory.refresh()
    got = np.concatenate([memory.values(chunk) for chunk in memory.chunks])
    np.testing.assert_array_equal(got, kind.read(memory, moved).T.reshape(-1))


@pytest.mark.parametrize("kind", cases(without="array"))
@pytest.mark.parametrize("complex_too", [False, True])
def test_a_tensor_that_lies_where_it_lay_in_another_order_is_followed(kind, complex_too):
    """Its address, shape and dtype are the same; only its strides are not."""
    square, beside = (kind.make(np.arange(400.0).reshape(20, 20) + 1000 * i, "float32") for i in range(2))
    tensors = [square, torch.complex(beside, beside)] if complex_too else [square, beside]
    memory = kind.bind(tensors)
    for tensor in tensors:
        tensor.data = tensor.data.t()
    memory.refresh()
    assert next(iter(memory.described().values())) == "float32[20, 20] strides [1, 20]"


@pytest.mark.parametrize("kind", cases())
def test_one_slab_serves_all_chunks_in_turn_and_more_than_once(kind):
    """Chunks of as many elements and other tensors: what was cut for one of them is of no use for another."""
    values = [np.arange(30.0) + 100 * number for number in range(20)]
    tensors = [kind.make(one, "float32") for one in values]
    memory = kind.bind(tensors, chunk_bytes=1 << 10)
    assert min(len(memory.chunks), *(len(chunk.pieces) for chunk in memory.chunks)) > 1
    slab = memory.new_slab(memory.largest, memory.chunks[0].device)
    for _ in range(2):
        for chunk in memory.chunks:
            memory.pack(chunk, slab)
            memory.merge(chunk, slab, 1.0, 1.0)  # its own values: nothing changes
    for tensor, one in zip(tensors, values, strict=True):
        np.testing.assert_array_equal(kind.read(memory, tensor), one)


def test_a_slab_that_is_dropped_is_not_kept_by_what_was_cut_of_it():
    memory = HostMemory([torch.zeros(700), torch.zeros(9)], ["a", "b"], None, 1 << 20)
    (chunk,) = memory.chunks
    slab = memory.new_slab(chunk.nbytes)
    memory.pack(chunk, slab)
    memory.merge(chunk, slab, 1.0, 1.0)
    gone = weakref.ref(slab.untyped_storage())
    there = weakref.ref(slab)
    del slab
    gc.collect()
    assert there() is None
    assert gone() is None
    assert len(memory._parts_of) == 0


@pytest.mark.parametrize("kind", cases(without="array"))
def test_a_tensor_of_another_shape_is_refused(kind):
    tensor = kind.make(np.zeros(5), "float32")
    memory = kind.bind([tensor], names=["layer.weight"])
    tensor.data = kind.make(np.zeros(6), "float32")
    with pytest.raises(LayoutError, match=r"layer\.weight"):
        memory.refresh()


def test_overlapping_tensors_are_refused(kind):
    whole = kind.make(np.zeros(10), "float32")
    with pytest.raises(ConfigurationError, match="overlap"):
        kind.bind([whole[:6], whole[4:]])


def test_closing_gives_the_slabs_back(kind, dtype):
    memory = kind.bind(tensors_of(kind, 17, dtype))
    slab = memory.new_slab(64, memory.chunks[0].device)
    assert len(slab) == 64
    memory.close()
    if memory.pending_buffers:
        assert slab.memory is None


def test_numpy_refuses_a_wire_dtype_that_it_does_not_have():
    with pytest.raises(ConfigurationError, match="wire_dtype='bfloat16': numpy has no such type"):
        ArrayMemory([np.zeros(3)], ["z"], "bfloat16", 1 << 20)


def test_a_tensor_whose_new_form_was_refused_is_refused_again():
    tensor = torch.zeros(6)
    memory = HostMemory([tensor], ["z"], None, 1 << 20)
    tensor.data = torch.zeros(7)
    for _ in range(2):
        with pytest.raises(LayoutError, match="parameter z"):
            memory.refresh()


def test_another_requires_grad_is_no_other_place():
    tensors = [torch.zeros(6) for _ in range(3)]
    memory = HostMemory(tensors, ["a", "b", "c"], None, 1 << 20)
    views = memory._views
    tensors[1].requires_grad_()
    for _ in range(2):
        memory.refresh()
        assert memory._views is views
    assert memory._surely_unmoved()
