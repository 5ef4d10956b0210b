"""A DataLoader that forks after MPI has started is told so once, with the fix, where the network does not bear it."""

from __future__ import annotations

import json

import pytest
from mpi.launch import succeeds

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


QUIET = ["before", "programs", "forkserver", "spawn"]


def warnings(ways, folder, size=2, device=True):
    """Return what each rank says of every way to start processes, on a host with or without such a network."""
    devices = folder / "devices"
    devices.mkdir()
    if device:
        (devices / "uverbs0").touch()
    succeeds(size, "forks.py", str(folder), str(devices / "uverbs*"), *ways, limit=300)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    return warnings([*QUIET, "fork"], tmp_path_factory.mktemp("forks"))


def test_every_rank_warns_once_of_workers_that_fork_and_names_the_fix(said):
    for rank, of in enumerate(said):
        ((level, text),) = of["fork"]
        assert level == "WARNING"
        assert text.startswith(f"rank {rank}: this process forks after MPI has started")
        assert "uverbs0" in text
        assert 'multiprocessing_context="forkserver"' in text
        assert "num_workers=0" in text


@pytest.mark.parametrize("how", QUIET)
def test_nothing_is_said_of_processes_that_do_not_fork_after_mpi_has_started(how, said):
    assert [of[how] for of in said] == [[], []]


def test_nothing_is_said_on_a_host_without_such_a_network(tmp_path):
    assert warnings(["fork"], tmp_path, device=False) == [{"fork": []}] * 2


def test_nothing_is_said_to_one_rank_alone(tmp_path):
    assert warnings(["fork"], tmp_path, size=1) == [{"fork": []}]
