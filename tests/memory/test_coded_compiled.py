"""The passes in eight bits that are compiled, against torch: the same bits on the wire, in z and in bounds.

Those of CUDA are compiled for the host here; those of the host are compiled by numba.
"""

from __future__ import annotations

import pytest
import torch
from memory.compiled import CompiledDevice, needs_compiler
from memory.emulated import EmulatedMemory, MemoryByTorch
from memory.test_contract import bytes_of, receive

from pushsum_opt.memory.host import DTYPES, HostMemory
from pushsum_opt.memory.modulo import BLOCK
from pushsum_opt.memory.plan import HEAD_BYTES, blocks_of

OTHER = pytest.mark.parametrize("other", [pytest.param("kernels", marks=needs_compiler), "numba"])
SIZES = (1000, 3, BLOCK, 2 * BLOCK - 3, 1, 5000, 129)
DTYPE = pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])


def pair(other, dtype, seed, change=lambda tensors: None, whole=False):
    """A memory whose passes are torch's, and one whose passes are compiled, with equal tensors and bounds."""
    made = []
    if other == "numba":
        pytest.importorskip("numba")
    for kind in (MemoryByTorch, HostMemory if other == "numba" else EmulatedMemory):
        rng = torch.Generator().manual_seed(7)
        flat = torch.randn(sum(SIZES), generator=rng) * 10.0 ** torch.randint(-3, 3, (sum(SIZES),), generator=rng)
        rng.manual_seed(seed)
        flat += 1e-2 * torch.rand(len(flat), generator=rng)
        tensors = list(flat.to(DTYPES[dtype]).split(SIZES))
        change(tensors)
        how = {"device": CompiledDevice(seed), "direct": True} if kind is EmulatedMemory else {}
        memory = kind(tensors, list("abcdefg"), "int8", 1 << 20, **how)
        for bounds in memory._bounds.values():
            bounds[:] = torch.rand(len(bounds), generator=rng).mul(1e-2).add(1e-2)
        memory.follow_graph(5, 1, 1)
        memory._whole_left = 3 if whole else 0
        memory.begin_round()
        made.append((memory, tensors))
    return made


def held(memory, tensors):
    """The bits of everything that a chunk may change."""
    if isinstance(memory, EmulatedMemory):
        memory._catch_up()
    parts = [*tensors, *memory._bounds.values(), *memory._residual.values()]
    return [bits(part) for part in parts]


def bits(part):
    """The bits; which nan it is does not matter."""
    return torch.where(part.isnan(), torch.full_like(part, torch.nan), part).view(torch.uint8).tolist()


def packed(memory, left=0.6, given=0.4):
    (chunk,) = memory.exchanged
    data = bytes_of(memory.pack(chunk, memory.new_slab(chunk.nbytes, chunk.device), left, given)).copy()
    data[8:HEAD_BYTES] = 0  # not used
    return data


def merged(memory, data, heal, fraction=0.4):
    """Merge, and begin the next round; return the outcome and for how many rounds messages will be whole."""
    (chunk,) = memory.exchanged
    whole = torch.zeros(chunk.nbytes, dtype=torch.uint8).numpy()
    whole[: len(data)] = data
    outcome = memory.merge_if_finite(chunk, receive(memory, chunk, whole), 1 - fraction, fraction, heal=heal).outcome()
    memory.begin_round()
    return outcome.finite, outcome.healed, outcome.missed, memory._whole, memory._whole_left


@OTHER
@DTYPE
@pytest.mark.parametrize("given", [0.4, 0.0])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("poison", [0.0, float("inf"), float("nan")])
def test_packing_gives_the_same_bits(other, dtype, given, whole, poison):
    def change(tensors):
        tensors[4] += poison
        tensors[5][600:1200] = 0

    (host, mine), (device, theirs) = pair(other, dtype, 1, change, whole)
    before = held(host, mine)
    sent, also = packed(host, given=given), packed(device, given=given)
    assert list(sent[:HEAD_BYTES]) == list(also[:HEAD_BYTES])
    if whole:  # which nan it is does not matter
        work = "float64" if dtype == "float64" else "float32"
        sent, also = (bits(torch.from_numpy(data[HEAD_BYTES:].view(work))) for data in (sent, also))
    assert list(sent) == list(also)
    assert held(host, mine) == held(device, theirs)
    assert (held(host, mine) == before) == (whole or not given)


def far(tensors):
    tensors[1] += 1e4


def most_are_far(tensors):
    tensors[5] += 1e4


def poisoned(tensors):
    tensors[4][0] = float("nan")


def nothing(tensors):
    pass


@OTHER
@DTYPE
@pytest.mark.parametrize("fraction", [0.4, 0.6])
@pytest.mark.parametrize("heal", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("sender", "receiver", "missed"),
    [
        (nothing, nothing, 0),
        (nothing, far, 1),
        (nothing, most_are_far, 11),
        (poisoned, nothing, 0),
        (nothing, poisoned, 1),
    ],
)
def test_merging_gives_the_same_bits_and_says_the_same(other, dtype, sender, receiver, missed, whole, heal, fraction):
    data = packed(pair(other, dtype, 1, sender, whole)[0][0])
    (host, mine), (device, theirs) = pair(other, dtype, 2, receiver, whole)
    before = held(host, mine)
    told = merged(host, data, heal, fraction)
    assert told == merged(device, data, heal, fraction)
    assert held(host, mine) == held(device, theirs)
    if sender is nothing:
        assert told[:3] == (True, whole and heal and receiver is poisoned, 0 if whole else missed)
        assert held(host, mine)[0] != before[0]
    else:
        assert told[:3] == (False, False, 0)
        assert held(host, mine)[: len(SIZES)] == before[: len(SIZES)]
    trouble = sender is poisoned or (receiver is poisoned and whole) or (receiver is most_are_far and not whole)
    assert told[3:] == ((True, 9) if trouble else (whole, whole))


@OTHER
def test_a_sum_that_does_not_fit_is_seen_however_many_threads_share_it(other):
    """One element that is one multiple of 256 steps away, at each place of a block in turn."""
    data = packed(pair(other, "float32", 1)[0][0])
    for place in (0, 1, 255, 511):

        def change(tensors, place=place):
            tensors[5][place] += 0.9 * 4e-2 * 2  # of theta, at most

        (host, mine), (device, theirs) = pair(other, "float32", 2, change)
        assert merged(host, data, False) == merged(device, data, False)
        assert held(host, mine) == held(device, theirs)


@OTHER
@DTYPE
@pytest.mark.parametrize("which", [0, 1])
def test_either_check_sum_is_enough_to_see_a_wrong_block(other, dtype, which):
    data, blocks = packed(pair(other, dtype, 1)[0][0]), blocks_of(sum(SIZES))
    sums = data[HEAD_BYTES + 4 * blocks : HEAD_BYTES + 12 * blocks].view("float32").reshape(2, blocks)
    sums[which, 2] += 1
    (host, mine), (device, theirs) = pair(other, dtype, 2)
    told = merged(host, data, False)
    assert told == merged(device, data, False)
    assert told[2] == 1
    assert held(host, mine) == held(device, theirs)
