"""What ``pushsum run`` starts: which cores a rank sees, that it starts without a home, and what reaches
another host."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from mpi import launch

pytestmark = pytest.mark.mpi

# A line and its end in one write: unbuffered, print() makes two, and what another rank writes may come between them.
SEES = """
import json, os, sys
sys.stdout.write(json.dumps([len(os.sched_getaffinity(0)), os.environ.get("HOME"), os.environ["MINE"]]) + "\\n")
"""


def test_two_ranks_with_one_thread_see_all_cores_and_a_home_though_none_was_set():
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MINE": "here"}
    environ.pop("HOME", None)
    done = subprocess.run(
        [sys.executable, "-m", "pushsum_opt", "run", "-np", "2", "python", "-c", SEES],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ranks) == 2
    for cores, home, mine in ranks:
        assert cores == len(os.sched_getaffinity(0))
        assert home is not None
        assert os.path.isdir(home)
        assert mine == "here"


MAC = """
import os, sys
del os.sched_getaffinity, os.sched_setaffinity
from pushsum_opt.cli import main
sys.exit(main(sys.argv[1:]))
"""
ON_A_MAC = """
import os
del os.sched_getaffinity, os.sched_setaffinity
import numpy as np, pushsum_opt as ps
z = np.array([float(ps.rank())])
with ps.PushSum([z]) as push_sum:
    push_sum.mix()
print(f"ended with {z.item()}")  # one write: ranks write between those of each other
"""


def test_where_the_system_has_no_affinity_as_on_macos_ranks_start_and_exchange():
    command = [sys.executable, "-c", MAC, "run", "-np", "2", sys.executable, "-c", ON_A_MAC]
    done = subprocess.run(command, env=launch.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ended with 0.5") == 2


AGENT = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec env -i PATH="$PATH" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 HOME=/tmp \\
    unshare --user --map-root-user --uts sh -c "hostname $host; $*"
"""
TELLS = """
import os, socket, sys
names = "OMP_NUM_THREADS", "PUSHSUM_STALL_SECONDS", "NCCL_DEBUG"
sys.stdout.write(" ".join([socket.gethostname(), *(str(os.environ.get(name)) for name in names)]) + "\\n")
"""


def namespaces() -> str | None:
    """Return why there can be no second host here; None: there can."""
    unshare = ["unshare", "--user", "--map-root-user", "--uts", "true"]
    if subprocess.run(unshare, capture_output=True).returncode != 0:
        return "a second host is made by unshare, which this system does not let this user do"
    return None


def test_given_threads_and_settings_reach_a_rank_on_another_host(tmp_path):
    if (why := namespaces()) is not None:
        pytest.skip(why)
    agent = tmp_path / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    (tmp_path / "tells.py").write_text(TELLS)
    if "--oversubscribe" in launch.launcher():
        options = ["--host", f"{socket.gethostname()}:1,another:1", "--map-by", "node", "--prtemca"]
        options += ["plm_ssh_agent", str(agent)]
    else:
        options = ["-hosts", f"{socket.gethostname()},another", "-ppn", "1", "-launcher-exec", str(agent)]
    done = subprocess.run(
        [sys.executable, "-m", "pushsum_opt", "run", "-np", "2", *options, "tells.py"],
        cwd=tmp_path,
        env=launch.environment(OMP_NUM_THREADS="3", PUSHSUM_STALL_SECONDS="7", NCCL_DEBUG="WARN"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.splitlines()) == sorted([f"{socket.gethostname()} 3 7 WARN", "another 3 7 WARN"])
