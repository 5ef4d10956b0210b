"""Inf and nan in what has come to a device: nobody waits for the check, nothing is merged, and all is told later."""

from __future__ import annotations

import pytest
import torch
from memory.emulated import RANK, EmulatedDevice, EmulatedMemory, settle

import pushsum_opt as ps
from pushsum_opt.collectives import averaged
from pushsum_opt.errors import NonFiniteError
from pushsum_opt.graphs import Ring
from pushsum_opt.memory import verdict
from pushsum_opt.memory.verdict import Flags, LateVerdict

WAYS = pytest.mark.parametrize("direct", [True, False], ids=["direct", "staged"])
MODES = pytest.mark.parametrize("staleness", [0, 2, "unbounded"])


@pytest.fixture
def answers_come_last(monkeypatch):
    """Nothing is known of any chunk until somebody waits for it."""
    monkeypatch.setattr(LateVerdict, "ready", lambda self: False)


def poisoned(comm, end, *, staleness=0, nonfinite="raise", dtype=torch.float32, rounds=1):
    """Rank 1 sends nan in one of its tensors; what rank 2 holds, and what it is told, where ``end`` finds it out."""
    tensors = {name: torch.full((200,), float(comm.rank), dtype=dtype) for name in ("bias", "scale", "weight")}
    push_sum = ps.PushSum(tensors, graph=Ring(), staleness=staleness, nonfinite=nonfinite, comm=comm)
    if comm.rank == 1:
        tensors["scale"][77] = float("nan")
    for _ in range(rounds):
        push_sum.mix()
    told = ""
    try:
        end(push_sum)
    except NonFiniteError as error:
        told = str(error)
    settle(push_sum)
    return told, push_sum.push_weight, {name: tensor.isfinite().all().item() for name, tensor in tensors.items()}


def inside_averaged(push_sum):
    with averaged(push_sum):
        pass


ENDS = {
    "drain": lambda push_sum: push_sum.drain(),
    "settle": inside_averaged,
    "average": lambda push_sum: push_sum.average(),
    "close": lambda push_sum: push_sum.close(),
}


@pytest.mark.parametrize(
    ("end", "staleness", "direct"),
    [
        ("drain", 0, True),
        ("settle", 0, False),
        ("average", 0, True),
        ("close", 0, False),
        ("drain", 2, False),
        ("settle", 2, True),
        ("average", 2, False),
        ("close", 2, True),
        ("drain", "unbounded", True),
        ("settle", "unbounded", False),
    ],
)
def test_calls_that_need_to_know_wait_and_name_sender_round_and_tensor(
    emulate, answers_come_last, direct, end, staleness
):
    emulate(direct=direct)
    found = {}

    def rank(comm):
        found[comm.rank] = poisoned(comm, ENDS[end], staleness=staleness, rounds=3 if staleness else 1)
        if found[comm.rank][0]:
            raise RuntimeError("the end of this rank")

    with pytest.raises(ps.testing.RankErrors):
        ps.testing.run(3, rank, timeout=60)
    told, weight, finite = found[2]
    for part in ("rank 2: the message of rank 1 in round 0 holds inf or nan in", "scale", "it was not merged"):
        assert part in told
    assert staleness or weight == pytest.approx(1.0), "its mass is counted"
    assert finite == {"bias": True, "scale": True, "weight": True}, "nothing of the chunk was merged"


@MODES
@WAYS
def test_a_later_round_tells_it_with_the_round_in_which_it_was_sent(emulate, direct, staleness):
    emulate(direct=direct, eager=0.5)
    found = {}

    def rank(comm):
        try:
            found[comm.rank] = poisoned(comm, ENDS["drain"], staleness=staleness, rounds=40)[0]
        except NonFiniteError as error:
            found[comm.rank] = str(error)
        if found[comm.rank]:
            raise RuntimeError("the end of this rank")

    with pytest.raises(ps.testing.RankErrors) as caught:
        ps.testing.run(3, rank, timeout=60)
    assert set(caught.value.errors) == {2}
    assert "rank 2: the message of rank 1 in round 0 holds inf or nan in" in found[2]


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("staleness", [0, 2])
def test_skipping_and_healing_change_the_same_bits_as_on_the_host(emulate, direct, dtype, staleness):
    def rank(comm):
        RANK.number = comm.rank
        generator = torch.Generator().manual_seed(comm.rank)
        tensors = [torch.randn(count, generator=generator).to(dtype) for count in (200, 300, 64)]
        with ps.PushSum(tensors, graph=Ring(), staleness=staleness, nonfinite="skip", comm=comm) as push_sum:
            for k in range(7):
                settle(push_sum)
                if k in (1, 4) and comm.rank == 1:
                    tensors[k // 4][k] = float("nan" if k == 1 else "-inf")
                push_sum.mix()
            push_sum.drain()
            settle(push_sum)
            bits = [tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors]
            return bits, push_sum.push_weight, push_sum.stats()["chunks_skipped"]

    emulate(direct=direct, only=())
    expected = ps.testing.run(3, rank)
    emulate(direct=direct, eager=0.3)
    found = ps.testing.run(3, rank, seed=8)
    assert found == expected
    assert sum(weight for _, weight, _ in found) == pytest.approx(3, rel=1e-13)
    assert sum(skipped for *_, skipped in found) > 2


# ---------------------------------------------------------------------- flags


def flags_of(eager):
    return Flags(device := EmulatedDevice(eager=eager)), device


def test_a_flag_that_was_raised_is_down_when_it_is_taken_again(monkeypatch):
    monkeypatch.setattr(verdict, "PAGE", 1)
    flags, device = flags_of(eager=0.0)
    for bad in (True, False, True, True, False):
        flag = flags.take(device.own)
        device.finish(device.own)
        assert not flag.raised[0]
        device.check(torch.tensor([float("inf") if bad else 1.0]).view(torch.uint8), "float32", flag, device.own)
        outcome = LateVerdict(flags, flag, device.record(device.own)).outcome()
        assert outcome.finite == (not bad)
    assert len(flags._free) == 1, "one flag did for all"


def test_flags_are_reused_however_many_chunks_are_not_finite(emulate):
    made = emulate(direct=True)

    def rank(comm):
        z = torch.full((200,), float("nan") if comm.rank == 0 else 1.0)
        with ps.PushSum([z], graph=Ring(), nonfinite="skip", comm=comm) as push_sum:
            before = push_sum.memory._device.allocated
            for _ in range(30):
                push_sum.mix()
                settle(push_sum)
                if comm.rank == 0:
                    z.fill_(float("nan"))
            return push_sum.memory._device.allocated - before

    assert ps.testing.run(2, rank) == [0, 0]
    assert all(len(memory._flags._free) == verdict.PAGE for memory in made)


def test_more_flags_are_made_where_all_are_in_use(monkeypatch):
    monkeypatch.setattr(verdict, "PAGE", 2)
    flags, device = flags_of(eager=0.0)
    taken = [flags.take(device.own) for _ in range(5)]
    assert len({flag.raised.data_ptr() for flag in taken}) == 5
    for flag in taken:
        flags.put_back(flag)
    assert len(flags._free) == 6


def test_a_tensor_that_is_not_contiguous_is_checked_too(emulate):
    """There is no pass for it: its check is waited for."""
    tensors = [torch.zeros(6, 20)[:, ::2]]
    memory = EmulatedMemory(tensors, ["strided"], None, 512, device=EmulatedDevice(), direct=True)
    (chunk,) = memory.chunks
    slab = memory.new_slab(chunk.nbytes, chunk.device)
    memory.wire_buffer(slab, chunk.nbytes).data.view("float32")[:] = float("nan")
    one = memory.merge_if_finite(chunk, slab, 1.0, 1.0)
    assert one.ready()
    assert not one.outcome().finite
    assert not tensors[0].any()
