"""What it costs to see a run: the time of a step with nothing, with metrics, with the timeline, and with both.

    pushsum run -np 2 examples/benchmarks/observing.py
    pushsum run -np 2 examples/benchmarks/observing.py --staleness 1

Six optimizers take turns, a block of steps each, in one run, so that a busy machine disturbs all alike. Two of them
have nothing attached: the difference between these is the noise. Gradients are ready, and the model is small, so a step
is little more than the round and what is measured. A block has as many steps as lie between two rows of metrics, so
writing the rows is part of it. Of a block counts the mean step of the slowest rank; the figures are means of the
quickest twentieth of all blocks, because what else a machine does makes blocks slower and never quicker.

Metrics with means have all ranks measure their consensus distance once in each window of the graph: every round on two
ranks, and every sixth one on 64.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch
from mpi4py import MPI

import pushsum_opt as ps

STEP_S = 0.05
"""The cost is put into relation to a step that takes so long."""
QUICKEST = 20
"""One block in so many counts."""


def optimizer_over(tensors: int, staleness: int) -> ps.PushSumOptimizer:
    """An optimizer over so many tensors of 100 numbers."""
    parameters = [torch.nn.Parameter(torch.randn(100) * 1e-2) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-6 * (1 + ps.rank()))
    return ps.PushSumOptimizer(torch.optim.SGD(parameters, lr=0.1, momentum=0.9), staleness=staleness)


def block(comm: MPI.Comm, optimizer: ps.PushSumOptimizer, metrics: ps.observe.Metrics | None, steps: int) -> float:
    """Return the mean time of a step in s, on the slowest rank."""
    comm.Barrier()
    begin = time.perf_counter()
    for step in range(steps):
        with ps.observe.span("forward"):
            pass
        optimizer.step()
        if metrics is not None:
            metrics.log(loss=step)
    return float(comm.allreduce((time.perf_counter() - begin) / steps, MPI.MAX))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=300, help="blocks of each optimizer")
    parser.add_argument("--steps", type=int, default=10, help="steps of a block")
    parser.add_argument("--tensors", type=int, default=20, help="tensors of the model")
    parser.add_argument("--staleness", type=int, default=0)
    parser.add_argument("--every", type=int, default=10, help="rounds from one row of metrics to the next")
    args = parser.parse_args()
    logging.getLogger("pushsum_opt").setLevel(logging.ERROR)  # six optimizers would say the same
    comm = MPI.COMM_WORLD
    with tempfile.TemporaryDirectory() as own:
        folder = Path(comm.bcast(own))
        attached: dict[str, tuple[ps.PushSumOptimizer, ps.observe.Metrics | None]] = {}
        for name in ("nothing", "nothing again", "no means", "metrics", "timeline", "both"):
            optimizer = optimizer_over(args.tensors, args.staleness)
            metrics = None
            if name in ("no means", "metrics", "both"):
                wanted = name != "no means"
                metrics = ps.observe.Metrics(optimizer, jsonl=folder / name, every=args.every, means=wanted)
            if name in ("timeline", "both"):
                ps.observe.Timeline(optimizer, folder / name)
            attached[name] = optimizer, metrics
        times: dict[str, list[float]] = {name: [] for name in attached}
        for number in range(args.blocks + 1):
            for name, (optimizer, metrics) in attached.items():
                seconds = block(comm, optimizer, metrics, args.steps)
                if number > 0:  # the first block allocates
                    times[name].append(seconds)
        for optimizer, _ in attached.values():
            optimizer.close()
        comm.Barrier()
    if comm.rank == 0:
        print(f"{comm.size} ranks, {args.tensors} tensors, staleness={args.staleness}, {args.blocks} blocks")
        print(f"{'':<14}{'step':>10}{'more':>10}{'of 50 ms':>10}")
        quick = {
            name: statistics.mean(sorted(found)[: max(1, len(found) // QUICKEST)]) for name, found in times.items()
        }
        for name, step in quick.items():
            more = step - quick["nothing"]
            print(f"{name:<14}{1e6 * step:>7.0f} us{1e6 * more:>7.0f} us{more / STEP_S:>10.2%}")


if __name__ == "__main__":
    main()
