"""Averaging numpy arrays needs no torch: hundreds of ranks fit on one machine."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["torch"] = None  # importing it fails, as where it is not installed
import numpy as np
import pushsum_opt as ps
from pushsum_opt.collectives import averaged

def rank(comm):
    z = np.full(5, float(comm.rank))
    with ps.PushSum([z], staleness=STALENESS, comm=comm) as push_sum:
        for _ in range(8):
            push_sum.mix()
        with averaged(push_sum):
            mean = z.copy()
        ps.consensus_distance(push_sum)
        assert ps.average(float(comm.rank), comm=comm) == (comm.size - 1) / 2
        assert ps.broadcast_object(comm.rank, comm=comm) == 0
    return mean

for mean in ps.testing.run(64, rank):
    np.testing.assert_allclose(mean, 31.5, atol=1e-12)
"""


def runs(staleness: str) -> None:
    program = PROGRAM.replace("STALENESS", staleness)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_synchronous_rounds_run_without_torch():
    runs("0")


def test_overlapped_rounds_run_without_torch():
    runs("1")


def test_every_public_name_is_exported():
    import pushsum_opt as ps

    for name in ps.__all__:
        assert getattr(ps, name) is not None
    assert set(ps.__all__) <= set(dir(ps))
