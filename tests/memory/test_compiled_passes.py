"""Passes compiled by numba: over any layout what torch gives, on some ranks or on all, and without numba torch's."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from memory.emulated import MemoryByTorch

import pushsum_opt as ps
from pushsum_opt.memory import compiled_passes
from pushsum_opt.memory.array import ArrayMemory
from pushsum_opt.memory.coded import FIRST_ROUNDS
from pushsum_opt.memory.host import HostMemory
from pushsum_opt.memory.modulo import BLOCK

compiled = pytest.importorskip("pushsum_opt.memory.compiled", exc_type=ImportError)


def layouts(seed):
    """Tensors that a block lies in alone, shares, or is not dense in; and arrays, one of them between addresses."""
    rng = np.random.default_rng(seed)
    shapes = [(3 * BLOCK,), (5,), (40, 30), (7, 100), (3000,)]
    tensors = [torch.from_numpy(rng.normal(size=shape)).float() for shape in shapes]
    tensors[2:] = [tensors[2][:, ::2], tensors[3].t(), tensors[4][::2]]
    between = np.frombuffer(bytearray(1 + 4 * 700), np.uint8)[1:].view(np.float32)
    between[:] = rng.normal(size=700)
    assert not between.flags.aligned
    return tensors, [rng.normal(size=(2000,)).astype(np.float32), between]


def after_an_exchange(kind, theirs, mine):
    """What is left of both, and the bytes between them: packed with rounding kept, and merged."""
    sender, memory = (kind(tensors, list("abcde")[: len(tensors)], "int8", 1 << 20) for tensors in (theirs, mine))
    for one in (sender, memory):
        one.follow_graph(1, 1, 0)
        for _ in range(FIRST_ROUNDS + 1):
            one.begin_round()
        for bounds in one._bounds.values():
            bounds[:] = 4.0
    found = []
    for chunk in sender.exchanged:
        slab = sender.new_slab(chunk.nbytes)
        slab[:] = 0
        sent = bytes(sender.pack(chunk, slab, 0.6, 0.4))
        outcome = memory.merge_if_finite(chunk, slab, 0.7, 0.3).outcome()
        assert (outcome.finite, outcome.missed) == (True, 0)
        found.append((sent, memory._bounds[chunk.index].tolist()))
    return found, [everything_around(tensor) for tensor in (*theirs, *mine)]


def everything_around(tensor):
    """The elements of a tensor, and those that lie between them."""
    if isinstance(tensor, np.ndarray):
        return tensor.tolist()
    return [tensor.tolist(), torch.tensor(tensor.untyped_storage().tolist(), dtype=torch.uint8).tolist()]


@pytest.mark.parametrize(
    "which", [slice(None), slice(2), slice(1, None, 3)], ids=["all", "dense", "every other element"]
)
def test_every_layout_of_tensors_gives_the_bits_of_torch(which):
    before = [layouts(1)[0][which], layouts(2)[0][which]]
    held = [everything_around(tensor) for tensor in (*before[0], *before[1])]
    found = after_an_exchange(HostMemory, *before)
    assert found == after_an_exchange(MemoryByTorch, layouts(1)[0][which], layouts(2)[0][which])
    assert all(was != now for was, now in zip(held, found[1], strict=True)), "packing and merging change every tensor"


def test_arrays_get_the_bits_of_torch_too():
    as_tensors = [[torch.from_numpy(array.copy()) for array in layouts(seed)[1]] for seed in (1, 2)]
    found, arrays = after_an_exchange(ArrayMemory, layouts(1)[1], layouts(2)[1])
    by_torch, tensors = after_an_exchange(MemoryByTorch, *as_tensors)
    assert (found, arrays) == (by_torch, [elements for elements, _ in tensors])


def test_a_tensor_that_has_moved_is_read_and_written_where_it_is_now():
    theirs, mine = torch.randn(2000), torch.randn(2000)
    memory = HostMemory([mine], ["a"], "int8", 1 << 20)
    memory._whole_left = 0
    memory.begin_round()
    (chunk,) = memory.exchanged
    memory._bounds[chunk.index][:] = 10.0
    slab = memory.new_slab(chunk.nbytes)
    memory.pack(chunk, slab, 0.5, 0.5)
    old = mine.data
    mine.data = theirs.clone()
    memory.refresh()
    before = old.clone()
    memory.merge_if_finite(chunk, slab, 0.5, 0.5)
    assert torch.equal(old, before)
    torch.testing.assert_close(mine, (theirs + before) / 2, atol=0.2, rtol=0)


def test_ranks_with_numba_and_ranks_without_it_train_the_same_bits():
    def train(without):
        def rank(comm):
            rng = np.random.default_rng(comm.rank)
            z = torch.from_numpy(rng.normal(size=3000)).float() * 0.01
            with ps.PushSum([z], comm=comm, wire_dtype="int8", staleness=1) as push_sum:
                if comm.rank in without:
                    push_sum.memory._compiled = lambda chunk: None
                for _ in range(2 * FIRST_ROUNDS):
                    z += torch.from_numpy(rng.normal(size=3000)).float() * 1e-4
                    push_sum.mix()
                assert push_sum.stats()["bytes_sent"] < 2 * FIRST_ROUNDS * 3000 * 3, "some messages were in eight bits"
            return z.tolist()

        return ps.testing.run(3, rank)

    assert train({0, 1, 2}) == train({1}) == train(set())


def test_memory_that_a_tensor_no_longer_has_is_not_written_to():
    """share_memory_() moves a storage: the tensor stays the same object and its views follow."""
    mine, sender = torch.zeros(2000), torch.ones(2000)
    memory, other = (HostMemory([tensor], ["a"], "int8", 1 << 20) for tensor in (mine, sender))
    for one in (memory, other):
        one._whole_left = 0
        one.begin_round()
        one._bounds[0][:] = 4.0
    (chunk,) = memory.exchanged
    slab = memory.new_slab(chunk.nbytes)
    memory.pack(chunk, slab, 0.5, 0.5)
    other.pack(chunk, slab, 0.5, 0.5)
    mine.share_memory_()
    memory.merge_if_finite(chunk, slab, 0.5, 0.5)
    torch.testing.assert_close(mine, torch.full((2000,), 0.5), atol=0.1, rtol=0)


@pytest.mark.parametrize("given", [0.5, 0.0])
def test_backward_notices_what_was_written_between(given):
    """By a merge, and by a pack that keeps what rounding took away."""
    weight = torch.nn.Parameter(torch.randn(1000))
    memory = HostMemory([weight], ["a"], "int8", 1 << 20)
    memory._whole_left = 0
    memory.begin_round()
    (chunk,) = memory.exchanged
    slab = memory.new_slab(chunk.nbytes)
    version = weight._version
    memory.pack(chunk, slab, 0.5, given)
    assert weight._version == version + (given > 0)
    loss = (weight**2).sum()
    memory.merge_if_finite(chunk, slab, 0.5, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_numba_there_is_nothing_compiled(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "pushsum_opt.memory.compiled")
    assert compiled_passes._compiled_once.__wrapped__("float32") is None
    assert not caplog.messages


def test_a_numba_that_cannot_be_used_is_told_of_and_torch_takes_its_place(monkeypatch, caplog):
    def refuse(work):
        raise TypeError("no such numpy")

    monkeypatch.setattr(compiled, "compile_passes", refuse)
    assert compiled_passes._compiled_once.__wrapped__("float32") is None
    assert caplog.messages == ["numba cannot be used: TypeError: no such numpy"]


def test_where_numba_is_told_to_compile_nothing_torch_takes_its_place():
    program = "from pushsum_opt.memory.compiled_passes import compiled_for; assert compiled_for('float32') is None"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)
