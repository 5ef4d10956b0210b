"""Passes compiled by numba: over any layout what torch gives, on some ranks or on all, and without numba torch's."""

from __future__ import annotations

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
    tensors = [torch.from_numpy(rng.normal(size=shape)).float() for shape in [(3 * BLOCK,), (5,), (40, 30), (7, 100)]]
    tensors[2], tensors[3] = tensors[2][:, ::2], tensors[3].t()
    between = np.frombuffer(bytearray(1 + 4 * 700), np.uint8)[1:].view(np.float32)
    between[:] = rng.normal(size=700)
    assert not between.flags.aligned
    return tensors, [rng.normal(size=(2000,)).astype(np.float32), between]


def after_an_exchange(kind, theirs, mine):
    """What is left of both, and the bytes between them: packed with rounding kept, and merged."""
    sender, memory = (kind(tensors, list("abcd")[: len(tensors)], "int8", 1 << 20) for tensors in (theirs, mine))
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
    return found, [np.asarray(tensor).tolist() for tensor in (*theirs, *mine)]


def test_every_layout_of_tensors_gives_the_bits_of_torch():
    before = [layouts(1)[0], layouts(2)[0]]
    held = [np.asarray(tensor).tolist() for tensor in (*before[0], *before[1])]
    found = after_an_exchange(HostMemory, *before)
    assert found == after_an_exchange(MemoryByTorch, layouts(1)[0], layouts(2)[0])
    assert all(was != now for was, now in zip(held, found[1], strict=True)), "packing and merging change every tensor"


def test_arrays_get_the_bits_of_torch_too():
    as_tensors = [[torch.from_numpy(array.copy()) for array in layouts(seed)[1]] for seed in (1, 2)]
    assert after_an_exchange(ArrayMemory, layouts(1)[1], layouts(2)[1]) == after_an_exchange(MemoryByTorch, *as_tensors)


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


def test_without_numba_there_is_nothing_compiled(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "pushsum_opt.memory.compiled")
    assert compiled_passes.compiled_for.__wrapped__("float32") is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("cannot cache function")])
def test_where_nothing_can_be_written_passes_are_compiled_all_the_same(monkeypatch, error):
    compile_them = compiled._compile

    def without_a_cache(real, cache):
        if cache:
            raise error
        return compile_them(real, cache)

    monkeypatch.setattr(compiled, "_compile", without_a_cache)
    assert compiled.compile_passes("float32").encode
