"""A job that dies is started again, and goes on from the memory of the hosts that are left."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest
from mpi import launch
from mpi.test_run import namespaces
from optimizer.common import KINDS, bits, closure_of, network, star, values
from warm.python import warm_python

import pushsum_opt as ps

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

STEPS = 14
PROGRAM = str(launch.HERE / "programs" / "restarted.py")
AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
host=$1; shift
[ -e {folder}/lost ] && exit 255
exec env -i PATH="$PATH" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 HOME=/tmp \\
    unshare --user --map-root-user --uts sh -c "hostname $host; $*"
"""


def run(folder, size, *words, how):
    done = subprocess.run(
        [sys.executable, "-m", "pushsum_opt", "run", "--restarts", "3", "-np", str(size), *words, str(folder),
         str(STEPS), how],
        cwd=folder,
        env=launch.environment(UCX_TLS="tcp,self"),  # two users' namespaces share no memory
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,  # 103 s were seen on 2 cores that 27 processes wanted
    )  # fmt: skip
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr, [file.read_text().split() for file in sorted(folder.glob("end-*"))]


def undisturbed(comm):
    model = network()
    optimizer = ps.PushSumOptimizer(KINDS["SGD"](model.parameters(), lr=0.01), model, graph=star, comm=comm)
    for step in range(STEPS):
        optimizer.step(closure_of(model, step, comm.rank))
    optimizer.close()
    return b"".join(bits(values(model))).hex()


def test_job_whose_rank_is_killed_goes_on_from_memory_with_the_bits_of_one_that_never_stopped(tmp_path):
    said, ends = run(tmp_path, 3, *warm_python(), PROGRAM, how="rank")
    assert re.search(r"exit code \d+ after \d+ s, round 8 saved; started again \(1 of 3\)$", said, re.MULTILINE)
    assert "resumed from round 8 in memory, of which no part is missing" in said
    assert [end[:2] for end in ends] == [["1", "8"]] * 3
    assert [end[4] for end in ends] == ps.testing.run(3, undisturbed)
    assert not any((tmp_path / "memory").rglob("*.[ab]"))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_job_that_loses_a_host_goes_on_with_fewer_ranks_from_what_is_left_in_memory(tmp_path):
    if namespaces() is not None:
        pytest.skip(namespaces())
    agent = tmp_path / "agent"
    agent.write_text(AGENT.format(folder=tmp_path))
    agent.chmod(0o755)
    here = socket.gethostname()
    if "--oversubscribe" in launch.launcher():
        options = ["--host", f"{here}:2,another:2", "--prtemca", "plm_ssh_agent", str(agent)]
    else:
        options = ["-hosts", f"{here}:2,another:2", "-launcher-exec", str(agent)]
    said, ends = run(tmp_path, 4, *options, *warm_python(), PROGRAM, how="host")
    assert "started again (1 of 3) with 2 of 4 ranks, as another does not answer" in said
    assert "resumed from round 8 in memory, of which the parts of ranks 2, 3 of 4 are missing, with 0.5 of the" in said
    assert [end[:3] for end in ends] == [["1", "8", "1.0"]] * 2
