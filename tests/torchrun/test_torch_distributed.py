"""The same promises over torch.distributed: the transport's contract, the bits of a training, and every way to end."""

from __future__ import annotations

import re

import pytest
from support.scenarios import numpy_training
from torchrun.launch import each_rank, run, succeeds
from warm.python import warm_python

from pushsum_opt import testing


@pytest.mark.parametrize("size", [2, 5])
def test_transport_contract(size):
    succeeds(size, "contract.py")


def test_every_mode_trains_and_has_the_same_bits_as_on_loopback():
    output = succeeds(4, "trainings.py", PUSHSUM_RANKS_PER_HOST="2")
    for staleness in (0, 2):
        expected = testing.run(4, lambda comm, tau=staleness: numpy_training(comm, staleness=tau))
        found = re.findall(rf"digest {staleness} \d+ (\w+) (\S+)", output)
        assert found == [(digest, repr(weight)) for digest, weight in expected]


def test_one_process_alone_needs_neither_a_launcher_nor_mpi4py():
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import torch, pushsum_opt as ps\n"
        "model = torch.nn.Linear(3, 2)\n"
        "optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, staleness=1)\n"
        "optimizer.step(); optimizer.close(); ps.barrier()\n"
        "print(ps.rank(), ps.size(), ps.local_rank(), ps.average(3.0))"
    )
    done = run([*warm_python(), "-c", code], 60)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 1 0 3.0"), done.stdout


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ((600, 4096), "from 600 to 1256"),
        ((600, 1100), "from 600 to 1100"),
        ((2000, 4096), "from 2000 to 2000"),
        ((600, 1000), "rank 3: a job of 500 processes over torch.distributed needs 1032 open files in each, and 1000"),
    ],
)
def test_large_jobs_get_the_open_files_that_they_need_or_are_refused(limits, said):
    code = (
        "import resource; from pushsum_opt.job import process_groups; files = resource.RLIMIT_NOFILE\n"
        f"resource.setrlimit(files, {limits}); process_groups._allow_connections(3, 500)\n"
        f"print('from {limits[0]} to', resource.getrlimit(files)[0])"
    )
    assert said in run([*warm_python(), "-c", code], 60).stdout


def test_copies_that_do_not_see_each_other_are_refused():
    command = [*warm_python(), "-c", "import pushsum_opt as ps; ps.size()"]
    done = run(command, 60, PUSHSUM_TRANSPORT="torch", OMPI_COMM_WORLD_SIZE="4")
    assert done.returncode == 1
    assert "LaunchError: OMPI_COMM_WORLD_SIZE=4, but this process is alone" in done.stdout


def test_process_groups_are_communicators_and_their_own_collectives_go_on():
    succeeds(4, "groups.py")


def test_a_thread_may_train_where_the_program_has_made_its_process_group_as_ray_train_does(tmp_path):
    succeeds(2, "on_a_thread.py", str(tmp_path))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", r"PeerFailed: rank [01]: rank 2 stopped: ValueError: the disk of the last rank is full"),
        ("finishes", r"PeerFinished: rank [01]: rank 2 finished after 3 rounds, while this rank waits"),
        ("killed", r"PeerFailed: rank [01]: rank 2 has died: its connection has ended"),
    ],
)
def test_how_a_rank_ends_is_told_by_those_that_wait_for_it(how, said):
    codes, outputs = each_rank(3, "endings.py", how, limit=60)
    assert 0 not in codes[:2]
    assert re.search(said, outputs[0] + outputs[1]), outputs
    if how == "raises":
        assert "rank 2 failed with the error above; ending all ranks" in outputs[2]


@pytest.mark.parametrize(("how", "code"), [("exits", 5), ("raises", 1)])
def test_a_message_that_is_too_long_is_refused_and_what_is_left_of_it_keeps_no_process_from_ending(how, code):
    codes, outputs = each_rank(2, "too_long.py", how, limit=60)
    assert codes == [code, 0], outputs
    assert "a message from rank 0 does not fit what was expected (its message: 10 bytes, got 100000)" in outputs[1]


def test_calls_on_some_ranks_only_are_named():
    codes, outputs = each_rank(2, "some_ranks_only.py", limit=60)
    assert 0 not in codes
    assert re.search(r"rank \d calls ps\.(average|barrier)\(\) while rank \d calls ps\.", "".join(outputs)), outputs
