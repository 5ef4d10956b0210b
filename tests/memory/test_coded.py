"""A chunk in eight bits in every kind of memory: merged where it came out right, kept where it did not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from memory.emulated import MemoryByTorch
from memory.test_contract import cases, receive, sent

from pushsum_opt.memory.coded import FIRST_ROUNDS
from pushsum_opt.memory.host import HostMemory
from pushsum_opt.memory.modulo import BLOCK

SIZE = 3 * BLOCK + 77


def pair(kind, dtype, far):
    """Two memories, the second with values that differ by 0.01 and by 40 in the blocks ``far``; both know 0.02."""
    rng = np.random.default_rng(5)
    theirs = rng.normal(size=SIZE)
    mine = theirs + 0.01 * rng.uniform(-1, 1, SIZE)
    for block in far:
        mine[block * BLOCK : (block + 1) * BLOCK] += 40.0
    made = []
    for values in (theirs, mine):
        tensor = kind.make(values, dtype)
        memory = kind.bind([tensor], "int8", chunk_bytes=1 << 16)
        memory.follow_graph(1, 1, 0)
        for _ in range(FIRST_ROUNDS + 1):
            memory.begin_round()
        for bounds in memory._bounds.values():
            bounds[:] = 0.02
        made.append((memory, tensor))
    return made


@pytest.mark.parametrize(("kind", "dtype"), cases("float32", "float64", "bfloat16"))
@pytest.mark.parametrize("far", [[], [1], [0, 1, 2, 3]], ids=str)
def test_blocks_that_came_out_wrong_are_kept_bit_for_bit_and_counted(kind, dtype, far):
    (sender, theirs), (memory, mine) = pair(kind, dtype, far)
    z, before = kind.read(sender, theirs), kind.read(memory, mine)
    (chunk,), (there,) = sender.exchanged, memory.exchanged
    data = sent(kind, sender, chunk, sender.new_slab(chunk.nbytes, chunk.device), left=0.5, given=0.5)
    assert len(data) == sender.message_bytes < 1.1 * SIZE
    room = np.full(chunk.nbytes, 0xFF, np.uint8)
    room[: len(data)] = data
    outcome = memory.merge_if_finite(there, receive(memory, there, room), 0.5, 0.5).outcome()
    assert (outcome.finite, outcome.missed) == (True, len(far))
    after = kind.read(memory, mine)
    for block in range(4):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        if block in far:
            np.testing.assert_array_equal(after[part], before[part])
        else:
            near = {"rtol": 2**-7, "atol": 2e-2} if dtype == "bfloat16" else {"rtol": 0, "atol": 1e-3}
            np.testing.assert_allclose(after[part], (before[part] + z[part]) / 2, **near)
    memory.begin_round()
    is_whole = memory.message_bytes > 4 * SIZE
    assert is_whole == bool(far), "one of four blocks is many"


@pytest.mark.parametrize("kind", [HostMemory, MemoryByTorch])
def test_what_eight_bits_take_is_a_number_for_each_block_and_by_torch_a_chunk(kind):
    tensors = [torch.zeros(100_000), torch.zeros(40_000)]
    memory = kind(tensors, ["a", "b"], "int8", 1 << 17)
    for _ in range(FIRST_ROUNDS + 1):
        memory.begin_round()
    for chunk in memory.exchanged:
        slab = memory.new_slab(chunk.nbytes)
        memory.pack(chunk, slab, 0.5, 0.5)
        memory.merge_if_finite(chunk, slab, 0.5, 0.5)
    bounds = 4 * sum(-(-chunk.numel // BLOCK) for chunk in memory.exchanged)
    largest = max(chunk.numel for chunk in memory.exchanged)
    if memory._compiled(chunk):
        assert memory.extra_bytes == bounds
    else:
        assert bounds < memory.extra_bytes <= bounds + 4 * (largest + BLOCK)


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_message_asks_for_is_heeded_when_it_is_merged_and_not_when_it_is_saved(whole):
    """A run that is saved has the bits of one that is not, and so has one that goes on from what was saved."""
    sender, plain, saved = (HostMemory([torch.ones(2000)], ["a"], "int8", 1 << 20) for _ in range(3))
    for memory in (plain, saved):
        memory.follow_graph(5, 1, 1)
        memory._whole_left = 0
    (chunk,) = sender.exchanged
    sender._whole, sender._whole_left = whole, 6
    slab = sender.new_slab(chunk.nbytes)
    sender.pack(chunk, slab, 0.5, 0.5)
    again = saved.new_slab(chunk.nbytes)
    saved.load_message_state({chunk.index: again}, saved.message_state({chunk.index: slab.clone()}))
    assert saved._whole_left == 0
    for memory, came in ((plain, slab), (saved, again)):
        memory.merge_if_finite(chunk, came, 0.5, 0.5)
    assert plain._whole_left == saved._whole_left == 5
