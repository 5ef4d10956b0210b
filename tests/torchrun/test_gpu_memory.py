"""GPU memory over torch.distributed, without a GPU: by a connection in NCCL's place, and through the host."""

from __future__ import annotations

import re

import pytest
from memory.test_staging import digests_on_the_host
from torchrun.launch import each_rank, succeeds

WAYS = pytest.mark.parametrize("way", ["nccl", "staged"])


@pytest.mark.parametrize("size", [2, 5])
def test_messages_come_whole_in_every_order_over_one_connection_each_way(size):
    succeeds(size, "device_bytes.py")


@WAYS
@pytest.mark.parametrize("staleness", [0, 2])
def test_late_streams_change_no_bit(way, staleness, monkeypatch):
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "512")
    expected = digests_on_the_host(3, staleness=staleness, wire="bfloat16")
    output = succeeds(3, "emulated.py", way, str(staleness), PUSHSUM_CHUNK_BYTES="512")
    assert re.findall(r"digest \d+ (\w+) (\S+)", output) == expected


@WAYS
def test_free_running_ranks_lose_no_mass(way):
    succeeds(4, "emulated.py", way, "unbounded", PUSHSUM_CHUNK_BYTES="512")


@pytest.mark.parametrize(
    ("how", "rank", "said"),
    [
        ("dies", 0, "PeerFailed: rank 0: rank 1 has died: its connection has ended"),
        ("dies while it connects", 0, "PeerFailed: rank 0: rank 1 has died: its connection has ended"),
        (
            "fails",
            1,
            "PeerFailed: rank 1: NCCL cannot send .* to rank 0: RuntimeError: NCCL_ERROR_UNHANDLED_CUDA_ERROR",
        ),
        ("hangs", 0, "PeerTimeout: rank 0: .*rank 1"),
        ("hangs and fails", 0, "PeerFailed: rank 0: rank 1 stopped: ValueError: the disk is full"),
        (
            "closes before",
            0,
            "PeerFailed: rank 0: NCCL cannot receive .* from rank 1: that one has given up the message",
        ),
        ("no NCCL", 0, "PeerFailed: rank 0: NCCL cannot receive .* from rank 1: ZeroDivisionError: division by zero"),
        ("lies elsewhere", 0, "MismatchError: rank 0: .* GPU memory for NCCL on rank 1, and in host memory .* rank 0"),
    ],
)
def test_what_goes_wrong_is_told_and_keeps_no_gpu_and_no_process_waiting(how, rank, said):
    codes, outputs = each_rank(2, "nccl_ends.py", how, limit=60)
    assert codes[rank] == 1, outputs
    assert re.search(said, outputs[rank]), outputs
    assert "AssertionError" not in "".join(outputs)


def test_a_new_transport_between_the_same_ranks_has_a_new_connection():
    succeeds(2, "nccl_ends.py", "hangs and goes on")


def test_what_is_under_way_at_the_end_of_the_program_does_not_cut_it_short():
    codes, outputs = each_rank(2, "nccl_ends.py", "hangs and is not closed", limit=60)
    assert codes == [3, 3]
    assert all("ended as any program" in output for output in outputs)
