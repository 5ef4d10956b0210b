"""Which launcher is seen, and so which network carries the messages."""

from __future__ import annotations

import pytest

from pushsum_opt.errors import ConfigurationError
from pushsum_opt.job import launch

TORCH = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
TORCHRUN = {**TORCH, "TORCHELASTIC_RUN_ID": "none"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "0"}


@pytest.mark.parametrize(
    ("environ", "torch", "why"),
    [
        (TORCHRUN, True, "torchrun"),
        (TORCH, True, "RANK"),
        (OPEN_MPI, False, "OMPI_COMM_WORLD_SIZE"),
        ({"PMI_SIZE": "4"}, False, "PMI_SIZE"),
        ({**TORCH, **OPEN_MPI}, False, "OMPI_COMM_WORLD_SIZE"),  # a script for both exports MASTER_ADDR and the rest
        ({**TORCHRUN, **OPEN_MPI}, True, "torchrun"),  # mpirun has started one torchrun per host
        ({**TORCHRUN, "SLURM_STEP_NUM_TASKS": "2"}, True, "torchrun"),  # srun has
        ({**TORCH, "SLURM_STEP_NUM_TASKS": "4"}, True, "RANK"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, False, "no launcher"),
        ({}, False, "no launcher"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, False, "no launcher"),  # other programs set these names too
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}, False, "no launcher"),
        ({**OPEN_MPI, "PUSHSUM_TRANSPORT": "torch"}, True, "PUSHSUM_TRANSPORT=torch"),
        ({**TORCHRUN, "PUSHSUM_TRANSPORT": "mpi"}, False, "PUSHSUM_TRANSPORT=mpi"),
    ],
    ids=lambda value: "+".join(value) or "nothing" if isinstance(value, dict) else None,
)
def test_the_launcher_nearest_to_the_process_decides(environ, torch, why):
    choice = launch.choose(environ)
    assert choice.torch is torch
    assert why in choice.why


def test_what_the_program_has_started_decides_where_no_launcher_is_seen():
    assert launch.choose({}, torch_size=4).torch
    assert not launch.choose({}, mpi_size=4, torch_size=4).torch
    assert not launch.choose(TORCH, mpi_size=4).torch
    assert not launch.choose({}, torch_size=1).torch


def test_without_mpi4py_one_process_alone_needs_none(monkeypatch):
    monkeypatch.setattr(launch, "has_mpi4py", lambda: False)
    assert launch.choose({}).torch
    assert not launch.choose({"PMI_SIZE": "4"}).torch


def test_another_transport_is_refused_with_its_name():
    with pytest.raises(ConfigurationError, match="PUSHSUM_TRANSPORT='nccl'"):
        launch.choose({"PUSHSUM_TRANSPORT": "nccl"})
