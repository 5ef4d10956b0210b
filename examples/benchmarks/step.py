"""What a step costs: ResNet-50's 161 tensors (25.6 M float32), against the floor and against all-reduce.

    pushsum run -np 4 examples/benchmarks/step.py
    pushsum run -np 1 examples/benchmarks/step.py
    pushsum run -np 4 examples/benchmarks/step.py --json step.json --repeat 31
    pushsum run -np 4 examples/benchmarks/step.py --torch
    pushsum run -np 2 examples/benchmarks/step.py --tensors 10 161 1000 5000

In one run, interleaved, so that a busy machine disturbs all alike:

    bare      the plain SGD step
    wrapped   the step of PushSumOptimizer around the same SGD: bare + exchange and merge
    gossip    the exchange and merge alone (one synchronous round, the check for non-finite values included)
    floor     one flat buffer of the same bytes by Sendrecv, then one in-place lerp_: nothing that mixes moves less
    gloo      torch's all-reduce of one flat buffer, over gloo
    torch     with --torch: the exchange and merge as in gossip, over torch.distributed in place of MPI

The figures are medians of the slowest rank, in milliseconds; quote the ratios.

With ``--tensors`` the model is so many tensors of 100 numbers each, where what counts is the work for each tensor and
not its bytes: bare, wrapped, and wrapped with ``staleness=1``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from shapes import resnet50_shapes

import pushsum_opt as ps


def timed(comm: MPI.Comm, action: Callable[[], object]) -> float:
    """Return the milliseconds that the slowest rank takes."""
    comm.Barrier()
    begin = time.perf_counter()
    action()
    mine = time.perf_counter() - begin
    return 1e3 * float(comm.allreduce(mine, MPI.MAX))


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gloo_all_reduce(comm: MPI.Comm, flat: torch.Tensor) -> Callable[[], object]:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ["MASTER_PORT"] = str(comm.bcast(29500 + os.getpid() % 1000))
    torch.distributed.init_process_group("gloo", rank=comm.rank, world_size=comm.size)
    return lambda: torch.distributed.all_reduce(flat)


def over_torch_distributed() -> ps.PushSumOptimizer:
    """An optimizer that exchanges over the processes of the default process group."""
    inner = sgd_over(resnet50_shapes())
    return ps.PushSumOptimizer(inner, graph=ps.graphs.Ring(), comm=torch.distributed.group.WORLD)


def sgd_over(shapes: list[tuple[int, ...]]) -> torch.optim.SGD:
    """SGD with momentum, which has made its first step."""
    parameters = [torch.nn.Parameter(torch.randn(shape) * 1e-2) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-6)
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    optimizer.step()
    return optimizer


def many_tensors(comm: MPI.Comm, counts: list[int], repeat: int) -> dict[str, dict[str, float]]:
    """Print and return the milliseconds of a step, by the number of tensors."""
    found = {}
    if comm.rank == 0:
        print(f"{comm.size} ranks, tensors of 100 float32, {repeat} runs, milliseconds")
        print(f"  {'tensors':>8}{'bare':>9}{'wrapped':>9}{'staleness 1':>13}{'us per tensor, wrapped - bare':>31}")
    for count in counts:
        shapes = [(100,)] * count
        optimizers: dict[str, Any] = {"bare": sgd_over(shapes)}
        for name, staleness in (("wrapped", 0), ("staleness 1", 1)):
            optimizers[name] = ps.PushSumOptimizer(sgd_over(shapes), graph=ps.graphs.Ring(), staleness=staleness)
        times: dict[str, list[float]] = {name: [] for name in optimizers}
        for turn in range(repeat + 3):
            for name, optimizer in optimizers.items():
                milliseconds = timed(comm, optimizer.step)
                if turn >= 3:
                    times[name].append(milliseconds)
        for name in ("wrapped", "staleness 1"):
            optimizers[name].close()
        found[str(count)] = median = {name: statistics.median(values) for name, values in times.items()}
        if comm.rank == 0:
            more = 1e3 * (median["wrapped"] - median["bare"]) / count
            print(f"  {count:8}{median['bare']:9.3f}{median['wrapped']:9.3f}{median['staleness 1']:13.3f}{more:31.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=21, help="timed runs of each (default 21)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--torch", action="store_true", help="the same over torch.distributed")
    parser.add_argument("--tensors", type=int, nargs="+", help="models of so many small tensors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    if arguments.tensors:
        found = many_tensors(comm, arguments.tensors, arguments.repeat)
        if arguments.json and comm.rank == 0:
            arguments.json.write_text(json.dumps({"ranks": comm.size, "times_ms": found}, indent=1))
        return
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size

    bare, inner = sgd_over(resnet50_shapes()), sgd_over(resnet50_shapes())
    nbytes = sum(4 * torch.Size(shape).numel() for shape in resnet50_shapes())
    before = peak_bytes()
    # The ring sends what the floor sends: one message to one peer.
    optimizer = ps.PushSumOptimizer(inner, graph=ps.graphs.Ring())
    optimizer.gossip()
    held = int(optimizer.stats()["extra_bytes"])
    grown = peak_bytes() - before

    flat = torch.ones(nbytes // 4)
    other = torch.empty_like(flat)
    sent, received = flat.numpy(), other.numpy()

    def floor() -> None:
        comm.Sendrecv(sent, right, 0, received, left, 0)
        flat.lerp_(other, 0.5)

    actions: dict[str, Callable[[], object]] = {"bare": bare.step, "wrapped": optimizer.step}
    if comm.size > 1:
        reduced = torch.ones(nbytes // 4)
        actions |= {"gossip": optimizer.gossip, "floor": floor, "gloo": gloo_all_reduce(comm, reduced)}
        if arguments.torch:
            over_torch = over_torch_distributed()
            actions["torch"] = over_torch.gossip
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(arguments.repeat + 2):
        for name, action in actions.items():
            milliseconds = timed(comm, action)
            if turn >= 2:
                times[name].append(milliseconds)
    optimizer.close()

    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = {"wrapped / bare": median["wrapped"] / median["bare"]}
    if comm.size > 1:
        ratios = {
            "gossip / floor": median["gossip"] / median["floor"],
            "(wrapped - bare) / floor": (median["wrapped"] - median["bare"]) / median["floor"],
            "gloo / gossip": median["gloo"] / median["gossip"],
        }
        if "torch" in median:
            ratios["torch / gossip"] = median["torch"] / median["gossip"]
    memory = {"held / parameters": held / nbytes, "peak growth / parameters": grown / nbytes}
    if comm.rank == 0:
        library = MPI.Get_library_version().split(",")[0].splitlines()[0].strip("\0 ")
        print(f"{comm.size} ranks, {library}, {nbytes / 1e6:.0f} MB of parameters, {arguments.repeat} runs")
        for name, values in times.items():
            quartiles = np.percentile(values, [25, 75])
            print(f"  {name:8} {median[name]:8.2f} ms   (quartiles {quartiles[0]:.2f} to {quartiles[1]:.2f})")
        for name, ratio in {**ratios, **memory}.items():
            print(f"  {name:26} {ratio:6.3f}")
        if arguments.json:
            figures = {"ranks": comm.size, "mpi": library, "times_ms": times, "median_ms": median, **ratios, **memory}
            arguments.json.write_text(json.dumps(figures, indent=1))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
