"""What a type checker sees of the library: right calls pass, wrong ones do not, also after `pip install -e`."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

CALLS = """
import numpy as np, torch, pushsum_opt as ps
from mpi4py import MPI
from torch.optim.sgd import SGD  # torch.optim itself names it since torch 2.5
model = torch.nn.Linear(2, 1)
inner = SGD(model.parameters(), lr=0.1)

def ring(rank: int, size: int, round: int) -> list[int]:
    return [(rank + 1) % size]

def rank(comm: ps.testing.LoopbackComm) -> float:
    ps.PushSum([np.zeros(3)], comm=comm)
    ps.PushSumOptimizer(inner, model, comm=comm)
    tensor: torch.Tensor = ps.average(torch.ones(2)) + ps.sum(torch.ones(2))
    whole: int = ps.sum(3)
    return ps.average(1.0, comm=comm) + ps.consensus_distance(ps.PushSumOptimizer(inner, model)) + whole

ps.testing.run(2, rank)
ps.PushSumOptimizer(inner, model, comm=MPI.COMM_WORLD, staleness="unbounded", within_host="ddp", buffers="gossip")
ps.PushSumOptimizer(inner, model, graph=ring, staleness=2, wire_dtype=torch.bfloat16, nonfinite="skip")
ps.PushSumOptimizer(inner, model, graph=ps.graphs.Ring(), wire_dtype="bfloat16")
ps.PushSum([np.zeros(3)], graph=[(0, 1), (1, 0)], wire_dtype=np.float16)
ps.PushSum({"z": np.zeros(3)}, graph=[[(0, 1)], [(1, 0)]], wire_dtype=np.dtype("float32"))
ps.PushSumOptimizer(inner, model, staleness="unbound")  # wrong
ps.PushSumOptimizer(inner, model, graph=3)  # wrong
ps.PushSumOptimizer(inner, model, graph="ring")  # wrong
ps.PushSumOptimizer(inner, model, within_host="nccl")  # wrong
ps.PushSumOptimizer(inner, model, buffers="mean")  # wrong
ps.PushSumOptimizer(inner, model, nonfinite="ignore")  # wrong
ps.PushSumOptimizer(inner, model, comm=0)  # wrong
ps.PushSumOptimizer(inner, model, wire_dtype="bf16")  # wrong
ps.PushSumOptimizer(inner, model, adaptive="correct")  # wrong
ps.PushSumOptimizer(model, inner)  # wrong
ps.PushSum([np.zeros(3)], staleness="unbound")  # wrong
ps.PushSum([np.zeros(3)], graph=ring(0, 1, 2))  # wrong
ps.average(1.0, comm="world")  # wrong
ps.barrier(comm="world")  # wrong
ps.average("loss")  # wrong
ps.sum(None)  # wrong
ps.average(torch.ones(1)).no_such_method()  # wrong
ps.consensus_distance(0)  # wrong
ps.broadcast_parameters(model, root="0")  # wrong
"""


def test_type_checker_refuses_wrong_calls_and_passes_right_ones(tmp_path):
    calls = tmp_path / "calls.py"
    calls.write_text(CALLS)
    # With the settings, the folder and the cache of the check of the library itself, most is known already.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "tox.ini", "--no-pretty", "--no-error-summary", str(calls)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    wrong = {number for number, line in enumerate(CALLS.splitlines(), 1) if "# wrong" in line}
    assert found == wrong, done.stdout + done.stderr


def test_editable_installation_is_a_path_that_type_checkers_and_editors_read(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "README.md", "LICENSE", "pushsum_opt"):
        (source / name).symlink_to(ROOT / name)
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        (path,) = [name for name in file.namelist() if name.endswith(".pth")]
        assert Path(file.read(path).decode().strip()) == source
        assert [name for name in file.namelist() if name.endswith(".py")] == []
