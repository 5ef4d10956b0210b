"""What checkpoints in memory cost: a step of 25.6 M float32 parameters with and without them, in one run.

    pushsum run -np 2 examples/benchmarks/memory_checkpoint.py
    pushsum run -np 4 examples/benchmarks/memory_checkpoint.py --every 20 --blocks 9
    pushsum run -np 2 examples/benchmarks/memory_checkpoint.py --compute 0
    pushsum run -np 2 examples/benchmarks/memory_checkpoint.py --compute 0 --optimizer AdamW

Interleaved blocks of ``--every`` steps, so that a busy machine disturbs all alike:

    plain      steps of PushSumOptimizer around SGD with momentum, or AdamW, in ResNet-50's 161 shapes
    memory     the same, with Saver(..., memory_every=EVERY): one checkpoint in memory per block
    disk       the same, with one checkpoint on disk per block

Beside them: one plain copy of the state (parameters and optimizer state) in the memory of the process, which is the
floor; and the seconds that one save takes. Each step has ``--compute`` seconds of waiting in it, in the place of a
forward and a backward on a GPU: ResNet-50 with a batch of 256 takes about 0.25 s on one. With 0 there is nothing but
the update and the exchange, the least favourable step. The figures are those of the slowest rank; quote the ratios.
Those of processor time, of the thread that steps, also hold on a machine that does other work beside.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mpi4py import MPI
from shapes import resnet50_shapes

import pushsum_opt as ps


def slowest(comm: MPI.Comm, action: Callable[[], object]) -> float:
    """Return the milliseconds that the slowest rank takes."""
    comm.Barrier()
    begin = time.perf_counter()
    action()
    return 1e3 * float(comm.allreduce(time.perf_counter() - begin, MPI.MAX))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=20, help="steps between saves (default 20)")
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks of each kind (default 5)")
    parser.add_argument("--compute", type=float, default=0.25, help="seconds of waiting in each step (default 0.25)")
    parser.add_argument("--staleness", type=int, default=0, help="default 0")
    parser.add_argument("--optimizer", choices=["SGD", "AdamW"], default="SGD", help="SGD: with momentum (default)")
    parser.add_argument("--without-disk", action="store_true", help="leave out the checkpoints on disk")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD

    parameters = [torch.nn.Parameter(torch.randn(shape) * 1e-2) for shape in resnet50_shapes()]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-6)
    inner: torch.optim.Optimizer = (
        torch.optim.AdamW(parameters, lr=1e-3)
        if arguments.optimizer == "AdamW"
        else torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    )
    optimizer = ps.PushSumOptimizer(inner, staleness=arguments.staleness)
    folder = Path(comm.bcast(tempfile.mkdtemp(prefix="memory-checkpoint-") if comm.rank == 0 else None))
    saver = ps.checkpoint.Saver(folder / "memory", optimizer, memory_every=arguments.every, signals=())
    saves: list[float] = []
    used: dict[str, list[float]] = {"step": [], "save": [], "copy": []}

    def step() -> None:
        time.sleep(arguments.compute)
        begin = time.thread_time()
        optimizer.step()
        used["step"].append(1e3 * (time.thread_time() - begin))

    def block(after: Callable[[], object], at_end: Callable[[], object]) -> Callable[[], None]:
        def steps() -> None:
            for _ in range(arguments.every):
                step()
                after()
            at_end()

        return steps

    def in_memory() -> None:
        begin, busy = time.perf_counter(), time.thread_time()
        saver.after_step()
        if optimizer.round % arguments.every == 0:
            saves.append(1e3 * (time.perf_counter() - begin))
            used["save"].append(1e3 * (time.thread_time() - busy))

    def one_copy() -> None:
        busy = time.thread_time()
        torch._foreach_copy_(copies, states)
        used["copy"].append(1e3 * (time.thread_time() - busy))

    def nothing() -> None:
        pass

    kinds: dict[str, Callable[[], None]] = {"plain": block(nothing, nothing), "memory": block(in_memory, nothing)}
    if not arguments.without_disk:
        kinds["disk"] = block(nothing, lambda: ps.checkpoint.save(folder / "disk", optimizer, keep=1))
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(arguments.blocks + 2):  # two first saves make the two files
        for name, action in kinds.items():
            milliseconds = slowest(comm, action)
            if turn >= 2:
                times[name].append(milliseconds)
    held = [tensor for state in inner.state.values() for tensor in state.values()]
    states = [*parameters, *(tensor for tensor in held if tensor.dim())]
    copies = [torch.empty_like(tensor) for tensor in states]
    copy = [slowest(comm, one_copy) for _ in range(9)]
    nbytes = sum(tensor.numel() * 4 for tensor in states)
    worst = comm.allreduce(statistics.median(saves[2:]), MPI.MAX)
    first = comm.allreduce(max(saves[:2]), MPI.MAX)
    busy = {name: comm.allreduce(statistics.median(values[2:]), MPI.MAX) for name, values in used.items()}
    saver.close()
    optimizer.close()
    if comm.rank == 0:
        each = {name: [one / arguments.every for one in values] for name, values in times.items()}
        plain = statistics.median(each["plain"])
        print(f"{comm.size} ranks, {nbytes / 1e6:.0f} MB of state each, one save in {arguments.every} steps")
        for name, values in each.items():
            median = statistics.median(values)
            print(
                f"  {name:7} {median:8.2f} ms per step ({min(values):.2f} to {max(values):.2f}), {median / plain:.4f}"
            )
        floor = statistics.median(copy[2:])
        print(f"  one copy of the state {floor:8.2f} ms; one save {worst:8.2f} ms, {worst / floor:.2f} of it")
        print(f"  one save per {arguments.every} steps: {worst / arguments.every / plain:.2%} of a plain step")
        print(f"  processor time: one save {busy['save']:.1f} ms, {busy['save'] / busy['copy']:.2f} of one copy;")
        part = busy["save"] / arguments.every
        print(f"  {part / busy['step']:.2%} of the update and exchange of a step ({busy['step']:.1f} ms), and")
        print(
            f"  {part / (busy['step'] + 1e3 * arguments.compute):.2%} of these and {arguments.compute:g} s of compute"
        )
        print(f"  the first two saves, which make the files: up to {first:.0f} ms")


if __name__ == "__main__":
    main()
