"""Several ranks on one GPU: the way through MPI's own hands and the way through the host, under every kind of delay."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from gpu.device import needs_cuda
from gpu.launch import DIRECT, GLOO, NCCL, PROGRAMS, ROOT, STAGED, ranks
from mpi.launch import environment

import pushsum_opt as ps

pytestmark = [*needs_cuda, pytest.mark.mpi]
WAYS = pytest.mark.parametrize("way", [DIRECT, STAGED], ids=["direct", "staged"])
NAMES = {DIRECT: "device pointers", STAGED: "through the host"}


@WAYS
@pytest.mark.parametrize("staleness", ["0", "2"])
@pytest.mark.parametrize(
    ("dtype", "wire"), [("float32", "none"), ("float32", "bfloat16"), ("mixed", "none"), ("mixed", "int8")]
)
def test_random_sleeps_on_every_stream_change_no_bit(tmp_path, way, staleness, dtype, wire):
    runs = [ranks(3, "rounds.py", staleness, dtype, wire, seed, tmp_path=tmp_path, way=way) for seed in ("0", "1", "2")]
    for rank in range(3):
        assert len({run[rank]["digest"] for run in runs}) == 1
        assert any(runs[0][rank]["sketch"])
        assert len({str(run[rank]["sketch"]) for run in runs}) == 1, "it is of z in the round in which it was begun"
        assert NAMES[way] in runs[0][rank]["memory"]


@WAYS
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "mixed"])
def test_mass_and_mean_are_kept(tmp_path, way, dtype):
    for found in ranks(3, "rounds.py", "1", dtype, "none", "0", tmp_path=tmp_path, way=way):
        assert found["mean_weight"] == pytest.approx(1.0, abs=1e-12)
        # Sums of rounding errors of float32, which also carries what half types cannot hold.
        assert found["error"] / found["count"] < (1e-13 if dtype == "float64" else 1e-8)


@pytest.mark.parametrize("staleness", ["0", "1"])
def test_both_ways_give_the_same_bits(tmp_path, staleness):
    direct, staged = (
        ranks(3, "rounds.py", staleness, "float32", "bfloat16", "0", tmp_path=tmp_path, way=way)
        for way in (DIRECT, STAGED)
    )
    assert [found["digest"] for found in direct] == [found["digest"] for found in staged]


@pytest.mark.parametrize("way", [GLOO, NCCL])
@pytest.mark.parametrize("staleness", ["0", "2"])
@pytest.mark.parametrize(("dtype", "wire"), [("float32", "bfloat16"), ("mixed", "int8")])
def test_torch_distributed_gives_the_bits_of_mpi(tmp_path, way, staleness, dtype, wire):
    by_mpi, found = (
        ranks(3, "rounds.py", staleness, dtype, wire, "1", tmp_path=tmp_path, way=w) for w in (STAGED, way)
    )
    assert [rank["digest"] for rank in found] == [rank["digest"] for rank in by_mpi]
    assert all(NAMES[DIRECT if way == NCCL else STAGED] in rank["memory"] for rank in found)


@pytest.mark.parametrize("way", [DIRECT, STAGED, GLOO, NCCL])
def test_free_running_ranks_lose_no_mass(tmp_path, way):
    for found in ranks(3, "rounds.py", "unbounded", "float32", "none", "1", tmp_path=tmp_path, way=way):
        assert found["mean_weight"] == pytest.approx(1.0, abs=1e-12)
        assert found["error"] / found["count"] < 1e-8


@pytest.mark.slow
@WAYS
def test_three_gibibytes(tmp_path, way):
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("two ranks with 3 GiB of parameters, gradients and slabs need 30 GiB of free GPU memory")
    for found in ranks(2, "large.py", str((3 << 30) // 4 + 5), tmp_path=tmp_path, way=way):
        assert found["right"] == [True] * 4


@WAYS
@pytest.mark.parametrize("how", ["plain", "compile", "graphs", "amp"])
def test_training_learns_and_agrees(tmp_path, way, how):
    found = ranks(2, "training.py", how, tmp_path=tmp_path, way=way)
    for one in found:
        assert one["losses"][-1] < 0.7 * one["losses"][0]
        assert one["rounds"] == 40
        assert one["finite"]
        assert one["mean_weight"] == pytest.approx(1.0, abs=1e-12)
        assert one["distance"] < 1.0
        assert 0.0 < one["live"] < 1.0
    if how == "amp":
        assert found[0]["skipped"] >= 1
        assert found[1]["skipped"] < found[0]["skipped"], "an inf is local to the rank that has it"
    if how == "graphs":
        assert all("while a CUDA graph is captured" in one["refused"] for one in found)


@WAYS
def test_what_users_combine_ends_where_it_ends_on_the_host(tmp_path, way):
    for found in ranks(3, "features.py", tmp_path=tmp_path, way=way):
        assert len(found["far"]) == 17
        assert not [(name, far) for name, far in found["far"].items() if isinstance(far, str) or far > 1e-4]


@WAYS
def test_memory_is_back_where_it_was_after_close(tmp_path, way):
    for found in ranks(2, "memory.py", tmp_path=tmp_path, way=way):
        assert found["free"][-1] >= found["free"][0] - (2 << 20), found


@WAYS
def test_rounds_find_their_memory_when_the_pool_has_all_of_it(tmp_path, way):
    found = ranks(2, "full_pool.py", tmp_path=tmp_path, way=way)
    for staleness in ("0", "1"):
        assert sum(one["weights"][staleness] for one in found) == pytest.approx(2, abs=1e-12)


def test_ranks_of_one_process_go_through_the_host():
    def rank(comm):
        z = torch.full((100_000,), float(comm.rank), device="cuda")
        with ps.PushSum([z], comm=comm) as push_sum:
            for _ in range(2):
                push_sum.mix()
            return z.unique().tolist(), push_sum.memory.name

    assert ps.testing.run(4, rank) == [([1.5], "cuda:0 (through the host)")] * 4


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer", path="/usr/local/cuda/bin") or shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed: it is a part of the CUDA toolkit, which pip does not bring")
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, str(PROGRAMS / "passes.py")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert (done.returncode, "ok" in done.stdout) == (0, True), done.stdout[-4000:] + done.stderr[-2000:]
