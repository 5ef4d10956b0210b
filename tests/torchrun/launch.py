"""Starts ranks as launchers of torch.distributed do: with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from support.ports import free_ports
from support.started import ROOT, end, finish, program, start
from warm.python import warm_python

HERE = Path(__file__).parent
OF_A_LAUNCHER = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "TORCHELASTIC_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a program that no launcher has started."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_LAUNCHER)}
    path = os.pathsep.join([str(HERE.parent), str(HERE.parent / "mpi"), os.environ.get("PYTHONPATH", "")])
    return {**plain, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path, **more}


def each_rank(size: int, name: str, *arguments: str, limit: float = 120.0, **variables: str):
    """Run ``tests/torchrun/programs/<name>`` on ``size`` ranks; see :func:`start_ranks`."""
    return start_ranks(size, [*warm_python(), program(HERE, name), *arguments], limit, **variables)


def start_ranks(size: int, script: list[str], limit: float = 120.0, **variables: str):
    """Run a command on ``size`` ranks, without any launcher.

    A run that takes longer than ``limit`` seconds is a hang: it is ended, and the test fails with its output.

    Returns:
        The exit code and the output of each rank.
    """
    job = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    job["MASTER_PORT"] = str(free_ports())
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(size)]
        processes = []
        for rank, file in enumerate(files):
            mine = environment(RANK=str(rank), LOCAL_RANK=str(rank), **job, **variables)
            with file.open("w") as output:
                processes.append(subprocess.Popen(script, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=mine))
        try:
            codes = [process.wait(limit) for process in processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{script} hung for {limit:g} s:\n{_read(files)[-6000:]}") from None
        finally:
            for process in processes:
                process.kill()
        return codes, [file.read_text(errors="replace") for file in files]


def succeeds(size: int, name: str, *arguments: str, **options) -> str:
    """Run a program that must succeed on every rank: each prints a line ``rank R of N: ok``."""
    codes, outputs = each_rank(size, name, *arguments, **options)
    for rank, (code, output) in enumerate(zip(codes, outputs, strict=True)):
        assert code == 0, f"rank {rank}: exit code {code}\n{output[-6000:]}"
        assert f"rank {rank} of {size}: ok" in output, output[-6000:]
    return "".join(outputs)


def torchrun_main() -> list[str]:
    return [*warm_python(), "-c", "from torch.distributed.run import main; main()"]


def torchrun_command(size: int, *words: str) -> list[str]:
    """Return the command that starts a script with torchrun itself."""
    options = ["--nproc-per-node", str(size), "--master-addr", "127.0.0.1", "--master-port", str(free_ports())]
    return [*torchrun_main(), *options, *words]


def torchrun(size: int, *words: str, limit: float = 180.0, **variables: str):
    """Run a script with torchrun itself and return the finished process, output as text."""
    return run(torchrun_command(size, *words), limit, **variables)


def agents(sizes: list[int], *words: str, limit: float = 180.0, **variables: str):
    """Run a script with one torchrun for each host; here all of them are on this one.

    Args:
        sizes: how many ranks each torchrun starts.

    Returns:
        The finished process of each, output as text.
    """
    where = f"127.0.0.1:{free_ports()}"
    together = ["--nnodes", str(len(sizes)), "--rdzv-backend", "c10d", "--rdzv-endpoint", where, "--rdzv-id", "hosts"]
    command = [*torchrun_main(), *together, "--local-addr", "127.0.0.1"]
    started = [start([*command, "--nproc-per-node", str(n), *words], environment(**variables)) for n in sizes]
    try:
        return [finish(process, limit) for process in started]
    finally:
        for process in started:
            end(process)


def run(command: list[str], limit: float = 180.0, **variables: str):
    """Run a command with a time limit; what it has started ends with it."""
    return finish(start(command, environment(**variables)), limit)


def _read(files: list[Path]) -> str:
    return "".join(file.read_text(errors="replace") for file in files)
